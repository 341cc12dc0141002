// app-config.js of an OHIF viewer (tested with 3.13.2) that opens what meddaemon holds: put it into the folder that the
// viewer is served from, with the address of `meddaemon web` below, and name the viewer's origin in `web.origins`.
const root = 'http://127.0.0.1:8104/dicom-web';

// A token of `web.readers`, asked for once in each tab: no secret stands in a file that everybody may fetch.
const KEY = 'meddaemon.token';
const authorization = () => {
  const token = sessionStorage.getItem(KEY) || prompt('Token to read from meddaemon') || '';
  sessionStorage.setItem(KEY, token);
  return { Authorization: `Bearer ${token}` };
};

// OHIF draws the coordinates of a measurement report, and fails at a report that has none, such as volumes of segments
// (OHIF/Viewers issue 3390). Those are shown as text.
const hasCoordinates = report => /"ValueType":"SCOORD/.test(JSON.stringify(report.ContentSequence ?? ''));

window.config = {
  routerBasename: null,
  showStudyList: true,
  modes: [],
  extensions: [
    {
      id: 'meddaemon',
      preRegistration({ servicesManager }) {
        const { displaySetService, userAuthenticationService } = servicesManager.services;
        userAuthenticationService.setServiceImplementation({ getAuthorizationHeader: authorization });
        displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, ({ displaySetsAdded }) => {
          for (const each of displaySetsAdded) {
            if (each.Modality === 'SR' && !hasCoordinates(each.instance)) each.isImagingMeasurementReport = false;
          }
        });
      },
    },
  ],
  httpErrorHandler: ({ status }) => {
    if (status === 401 || status === 403) sessionStorage.removeItem(KEY);
  },
  defaultDataSourceName: 'meddaemon',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'meddaemon',
      configuration: {
        friendlyName: 'meddaemon',
        qidoRoot: root,
        wadoRoot: root,
        qidoSupportsIncludeField: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};
