// Builds dist/, which is committed and embedded in the server: `npm ci && npm run generate && npm run build`.
// The same sources and package-lock.json give the same bytes; CI compares them.
import { build } from "esbuild";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { basename } from "node:path";

const here = new URL(".", import.meta.url);
const at = (path) => new URL(path, here);
await mkdir(at("dist"), { recursive: true });

/** Writes a file of dist/ if it has changed: cargo compiles the program that embeds it again after each write. */
async function put(name, content) {
  const bytes = Buffer.from(content);
  const known = await readFile(at(`dist/${name}`)).catch(() => undefined);
  if (!known?.equals(bytes)) await writeFile(at(`dist/${name}`), bytes);
}

async function putAll(outputFiles) {
  for (const { path, contents } of outputFiles) await put(basename(path), contents);
}

const result = await build({
  absWorkingDir: here.pathname,
  entryPoints: { viewer: "src/main.ts" },
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none", // they stand in LICENSES.txt
  metafile: true,
  write: false,
});
await putAll(result.outputFiles);
const styles = await build({
  absWorkingDir: here.pathname,
  entryPoints: ["src/assets/viewer.css"],
  outfile: "dist/viewer.css",
  minify: true,
  target: "es2022",
  write: false,
});
await putAll(styles.outputFiles);
for (const name of ["index.html", "icon.svg"]) {
  await put(name, await readFile(at(`src/assets/${name}`)));
}

// The licences of what the bundle really holds.
const bundled = new Set();
for (const path of Object.keys(result.metafile.inputs)) {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1];
  if (name) bundled.add(name);
}
const apache = await readFile(at("../LICENSE-APACHE"), "utf8");
const google = `Parts of it, for the wire format of Protocol Buffers, are under this licence:

Copyright 2008 Google Inc.  All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

* Redistributions of source code must retain the above copyright notice, this list of conditions and the following
  disclaimer.
* Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
  disclaimer in the documentation and/or other materials provided with the distribution.
* Neither the name of Google Inc. nor the names of its contributors may be used to endorse or promote products derived
  from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
`;
const sections = [];
const needed = new Set();
for (const name of [...bundled].sort()) {
  const folder = at(`node_modules/${name}/`);
  const { version, license } = JSON.parse(await readFile(new URL("package.json", folder), "utf8"));
  const parts = [`${name} ${version}\nLicence: ${license}\n`];
  const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
  if (file) parts.push((await readFile(new URL(file, folder), "utf8")).trim() + "\n");
  else if (!/Apache-2\.0/.test(license)) throw new Error(`${name} has no licence text`);
  if (/Apache-2\.0/.test(license)) needed.add("Apache-2.0");
  if (name === "@bufbuild/protobuf") parts.push(google);
  sections.push(parts.join("\n"));
}
if (needed.has("Apache-2.0")) sections.push(`Apache-2.0\n\n${apache.trim()}\n`);
const rule = "\n" + "=".repeat(100) + "\n\n";
const head = "The viewer of Tessera (MIT OR Apache-2.0) holds these packages:\n";
await put("LICENSES.txt", [head, ...sections].join(rule));
