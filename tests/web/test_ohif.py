"""A real viewer in a real browser: OHIF, as its package comes, over the real web role, from another origin.

Needs Chromium (Debian: chromium-headless-shell), the Python package playwright, and in MEDDAEMON_OHIF the folder `dist`
of the npm package @ohif/app; `.ci/run` installs them.
"""

import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_factory import make_series
from edition_samples import editions
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless
from sources import with_everything

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, encode
from tests.running import REPOSITORY, Home
from tests.web.archive import READERS, TOKEN, record_objects
from tests.web.posting import WEB, web_port

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
DIST = Path(os.environ.get("MEDDAEMON_OHIF", "/nowhere"))
SECONDS = 120.0
"""How long the browser may take for a step: it draws without a GPU, beside other tests."""
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COLOUR = {1: (216, 101, 80), 2: (216, 101, 81)}
"""Of the two segments, as the samples have it."""


@dataclass(frozen=True)
class Study:
    """A study in the archive, and the result that was made of it."""

    request: EncodingRequest
    made: Sequence[EncodedObject]

    @classmethod
    def make(cls, folder: Path, *, form: str = "binary/3d", **changes: Any) -> "Study":
        """Write the images of a series to a folder, and make a result of every kind."""
        shape = {"planes": 9, "rows": 64, "columns": 48, "spacing": (4.0, 3.0, 2.5)}
        named = {"study": folder.name, "seed": folder.name}
        request = with_everything(make_series(folder, **{**shape, **named, **changes}), editions=editions(form))
        return cls(request, encode(request))

    @property
    def images(self) -> dict[str, Dataset]:
        return {str(each.SOPInstanceUID): each for each in map(dcmread, self.request.sources)}

    @property
    def uid(self) -> str:
        return str(next(iter(self.images.values())).StudyInstanceUID)

    def of(self, kind: ObjectKind, part: str = "") -> Dataset:
        (found,) = (each for each in self.made if (each.kind, each.part) == (kind, part))
        return dcmread(BytesIO(found.content))


class Viewer(SimpleHTTPRequestHandler):
    """Serves the viewer as its deployment guide says: what is no file is the application."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, settings: list[bytes]) -> None:
        self.settings = settings
        super().__init__(*arguments, directory=str(DIST))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/app-config.js":
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Content-Length", str(len(self.settings[0])))
            self.end_headers()
            self.wfile.write(self.settings[0])
            return
        if not (DIST / path.lstrip("/")).is_file():
            self.path = "/index.html"
        super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(settings: list[bytes]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Viewer, settings=settings)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Desk:
    """A browser with one tab, and what the archive answered it."""

    page: Any
    viewer: str
    home: Home
    study: Study
    answers: list[tuple[int, str]]

    def until(self, expression: str, argument: Any = None) -> Any:
        """Return what an expression gives as soon as it is true."""
        return self.page.wait_for_function(expression, arg=argument).json_value()

    def open_study(self, study: Study) -> None:
        self.page.goto(f"{self.viewer}/viewer?StudyInstanceUIDs={study.uid}")
        self.until("window.services?.displaySetService.getActiveDisplaySets().length > 10")
        notice = self.page.get_by_role("button", name="Confirm and hide")
        if notice.is_visible():
            notice.click()

    def open_series(self, number: int) -> None:
        """Do what a reader does: a double click on the series in the list."""
        named = self.page.get_by_text(f"S:{number}", exact=True)
        self.page.locator("[data-cy^=study-browser-thumbnail]").filter(has=named).dblclick()

    def display_sets(self, what: str) -> list[Any]:
        return list(self.page.evaluate(f"services.displaySetService.getActiveDisplaySets().map(each => {what})"))

    def pixels(self, uids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the values of these images, of which the viewer has fetched and decoded all."""
        said = self.until(
            """uids => {
              const active = services.viewportGridService.getActiveViewportId();
              const ids = services.cornerstoneViewportService.getCornerstoneViewport(active)?.getImageIds() ?? [];
              const images = uids.map(uid => cornerstone.cache.getImage(ids.find(id => id.includes(uid)) ?? ''));
              return images.every(Boolean) && images.map(image => Array.from(image.getPixelData()));
            }""",
            list(uids),
        )
        return {uid: np.array(values, float) for uid, values in zip(uids, said, strict=True)}

    def segmentation(self, kind: str) -> dict[str, Any]:
        """Return the segments that are drawn of the segmentation of a kind, and the voxels of each."""
        return dict(
            self.until(
                """kind => {
                  const service = services.segmentationService;
                  const viewport = services.viewportGridService.getActiveViewportId();
                  const shown = service.getSegmentationRepresentations(viewport).find(each => each.type === kind);
                  const found = shown && service.getSegmentation(shown.segmentationId);
                  if (!found) return null;
                  const voxels = {};
                  for (const id of found.representationData.Labelmap?.imageIds ?? []) {
                    for (const value of cornerstone.cache.getImage(id).getPixelData()) {
                      if (value) voxels[value] = (voxels[value] ?? 0) + 1;
                    }
                  }
                  // Segment 0 is the background of a label map.
                  const segments = Object.values(found.segments).filter(each => each.segmentIndex).map(each => [
                    each.segmentIndex, each.label,
                    service.getSegmentColor(viewport, shown.segmentationId, each.segmentIndex),
                  ]);
                  return { segments, voxels };
                }""",
                kind,
            )
        )

    def picture(self) -> NDArray[np.uint8]:
        """Return what stands on the screen where the images are, as rows of RGB."""
        png = self.page.locator("[data-cy=viewport-pane] canvas").first.screenshot()
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if not (DIST / "index.html").is_file():
        pytest.skip("MEDDAEMON_OHIF does not name the folder dist of @ohif/app")
    folder = tmp_path_factory.mktemp("ohif")
    made = Study.make(folder / "in", modality="MR", orientation="oblique")
    settings = [b""]
    with serving(settings) as viewer:
        home = Home.make(
            folder / "home", f'{WEB}readers = {{ VIEWER = "{READERS["VIEWER"]}" }}\norigins = ["{viewer}"]\n'
        )
        assert home.cli("import", folder / "in").returncode == 0
        with home.database() as database:
            record_objects(database, home.settings.store.results, made.uid, made.made, rule="rule")
        with home.running("web") as role, playwright.sync_playwright() as started:
            shipped = (REPOSITORY / "config" / "ohif.js").read_text()
            settings[0] = shipped.replace("127.0.0.1:8104", f"127.0.0.1:{web_port(role)}").encode()
            browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.set_default_timeout(SECONDS * 1000)
            page.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
            answers: list[tuple[int, str]] = []
            page.on(
                "response", lambda answer: "/dicom-web/" in answer.url and answers.append((answer.status, answer.url))
            )
            yield Desk(page, viewer, home, made, answers)
            browser.close()


def test_whoever_has_a_token_sees_the_studies(desk: Desk) -> None:
    given = iter(["not a token", TOKEN])
    desk.page.on("dialog", lambda dialog: dialog.accept(next(given)))
    with desk.page.expect_response(lambda answer: "/studies?" in answer.url) as refused:
        desk.page.goto(desk.viewer)
    assert refused.value.status == 401
    desk.until("sessionStorage.getItem('meddaemon.token') === null")
    desk.page.goto(desk.viewer)
    desk.page.get_by_text("Doe, Jane").first.wait_for()
    assert "DOC\\KO\\MR\\OT\\PR\\RTSTRUCT\\SEG\\SR" in desk.page.inner_text("body")
    desk.answers.clear()


@pytest.mark.timeout(600)
def test_a_study_opens_with_its_results(desk: Desk) -> None:
    shown = opened_with_its_results(desk, desk.study)
    for number, _, colour in shown:
        np.testing.assert_allclose(colour[:3], COLOUR[number], atol=2)  # through CIELab and back


@pytest.mark.soak
def test_a_study_opens_that_an_archive_sent_with_a_label_map(desk: Desk, tmp_path: Path) -> None:
    """Compressed images and objects, received. OHIF 3.13 gives each segment of a label map another one's colour."""
    study = Study.make(tmp_path / "ct", form="labelmap/3d", modality="CT", transfer_syntax=RLELossless)
    for each in study.made:
        (tmp_path / "ct" / f"{each.sop_instance_uid}.dcm").write_bytes(each.content)
    assert desk.home.cli("import", tmp_path / "ct").returncode == 0
    opened_with_its_results(desk, study)


def opened_with_its_results(desk: Desk, study: Study) -> list[Any]:
    """Assert that voxels, names, numbers and pages are in the viewer what they are in the objects.

    Returns number, label and colour of the segments that it shows.
    """
    desk.page.evaluate("token => sessionStorage.setItem('meddaemon.token', token)", TOKEN)
    desk.open_study(study)

    for uid, values in desk.pixels(list(study.images)).items():
        image = study.images[uid]
        expected = image.pixel_array * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
        np.testing.assert_array_equal(values, expected.ravel())
    assert desk.picture().std() > 10

    desk.open_series(int(study.of(ObjectKind.SEG).SeriesNumber))
    shown = desk.segmentation("Labelmap")
    analysis = study.request.analysis
    assert [tuple(each[:2]) for each in shown["segments"]] == [(each.number, each.label) for each in analysis.segments]
    assert {int(number): count for number, count in shown["voxels"].items()} == {
        each.number: each.voxel_count for each in analysis.segments
    }
    segments = list(shown["segments"])

    # Volumes, and that nothing was found, have no coordinates and are text.
    for part, said in (("volumes", r"87\.6 mL.*108\.72 mL"), ("classes", r"82\.5 %.*Absent")):
        desk.open_series(int(study.of(ObjectKind.SR, part).SeriesNumber))
        desk.page.get_by_text("Imaging Measurement Report").wait_for()
        desk.page.get_by_text(re.compile(said.partition(".*")[2])).wait_for()
        assert re.search(said, desk.page.inner_text("body"), re.DOTALL)
    desk.open_series(int(study.of(ObjectKind.SR, "boxes").SeriesNumber))
    for said in ("80.50 %", "81.50 %"):
        desk.page.get_by_text(f"Certainty of Finding: {said}").wait_for()

    desk.open_series(int(study.of(ObjectKind.RTSTRUCT).SeriesNumber))
    shown = desk.segmentation("Contour")
    assert [each[1] for each in shown["segments"]] == [each.label for each in analysis.segments]

    summary = study.of(ObjectKind.SC)
    desk.open_series(int(summary.SeriesNumber))
    (values,) = desk.pixels([str(summary.SOPInstanceUID)]).values()
    colours = values.reshape(summary.Rows, summary.Columns, -1)[..., :3]
    np.testing.assert_array_equal(colours, summary.pixel_array)

    document = study.of(ObjectKind.PDF)
    desk.open_series(int(document.SeriesNumber))
    desk.page.locator("object").wait_for(state="attached")
    page = desk.page.evaluate(
        """async () => {
          const answer = await fetch(document.querySelector('object').data);
          return Array.from(new Uint8Array(await answer.arrayBuffer()));
        }"""
    )
    length = document.EncapsulatedDocumentLength  # what follows it makes the length even
    assert bytes(page)[:length] == document.EncapsulatedDocument[:length]

    # What OHIF 3.13 has no reader for.
    unsupported = Counter(kind for kind, not_read in desk.display_sets("[each.Modality, each.unsupported]") if not_read)
    assert set(unsupported) == {"PR", "KO"}
    assert [answer for answer in desk.answers if answer[0] >= 400] == []
    assert len(desk.answers) > len(study.images)
    return segments
