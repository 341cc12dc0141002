// What ohif_read.mjs says of many files, in one process.
// usage: node ohif_read_all.mjs OHIF_READ_MJS     reads lines of [FILE, DIR_WITH_SOURCE_IMAGES], writes [FILE, TEXT]
import fs from 'fs'; import { pathToFileURL } from 'url';
const reader = pathToFileURL(process.argv[2]).href, out = process.stdout.write.bind(process.stdout);
class Exit extends Error {}
process.exit = status => { if (status) throw new Exit(); };
let turn = 0;
for (const line of fs.readFileSync(0, 'utf8').split('\n').filter(Boolean)) {
  const [file, folder] = JSON.parse(line), said = [];
  process.argv = ['node', reader, file, folder];
  console.log = text => said.push(text);
  // A module is run once for each address; what it imports stays loaded.
  try { await import(`${reader}?${turn++}`); } catch (e) { if (!(e instanceof Exit)) said.push('Error: ' + e.stack); }
  out(JSON.stringify([file, said.join('\n')]) + '\n');
}
