// A server with a folder of its own, and a browser, for the tests of the viewer.
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const root = fileURLToPath(new URL("../../", import.meta.url));
export const shots = path.join(root, "target/viewer");
const program = process.env.TESSERA ?? path.join(root, "target/release/tessera");
const patience = Number(process.env.PATIENCE ?? 90_000);

/** Address of the server, and the folder of its jobs. */
export const site = { url: "", jobs: "" };
let browser, server;

/** Starts the server on `address` with more `flags`; resolves with its URL when it listens. */
export async function serve(address, ...flags) {
  server = spawn(program, ["serve", "--listen", address, "--jobs", site.jobs, "--device", "cpu", ...flags], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  for await (const piece of server.stdout) {
    said += piece;
    const found = /listening on (\S+)\n/.exec(said);
    if (found) return found[1];
  }
  throw new Error(`the server said ${said}`);
}

export async function kill() {
  const gone = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGKILL");
  await gone;
}

/** Starts a server without jobs, in place of one that runs. */
export async function restart(...flags) {
  if (server?.exitCode === null) await kill();
  if (site.jobs) await rm(site.jobs, { recursive: true, force: true });
  site.jobs = await mkdtemp(path.join(tmpdir(), "tessera-viewer-"));
  site.url = await serve("127.0.0.1:0", ...flags);
}

/** Has a server with these flags and a browser during the tests of a file. */
export function setUp(...flags) {
  before(async () => {
    await mkdir(shots, { recursive: true });
    await restart(...flags);
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
      ],
    });
  });
  after(async () => {
    await browser?.close();
    if (server?.exitCode === null) await kill();
    if (site.jobs) await rm(site.jobs, { recursive: true, force: true });
  });
}

/** A page that fails the test on errors of scripts and on requests to addresses that do not begin with `home`. */
export async function open(address, width = 1280, height = 800, home = site.url, options = {}) {
  const context = await browser.newContext({ viewport: { width, height }, acceptDownloads: true, ...options });
  context.setDefaultTimeout(patience);
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") page.problems.push(`${message.text()} ${message.location().url}`);
  });
  page.on("request", (request) => {
    const other = !request.url().startsWith(`${home}/`) && !/^(blob|data):/.test(request.url());
    if (other) page.problems.push(`asks ${request.url()}`);
  });
  // For work on the viewer without building the server again.
  if (process.env.VIEWER_DIST) {
    for (const [name, file] of [["", "index.html"], ["viewer.js", "viewer.js"], ["viewer.css", "viewer.css"]]) {
      await page.route(`${home}/${name}`, async (route) => {
        const response = await route.fetch();
        await route.fulfill({ response, body: await readFile(path.join(root, "viewer/dist", file), "utf8") });
      });
    }
  }
  await page.goto(address);
  return page;
}

export const status = (page) => page.locator("#status");
export const sharp = (page) => page.waitForFunction(() => window.tessera.sharp());

export async function order(page, { seed, size, steps }) {
  await page.getByLabel("Seed", { exact: true }).fill(String(seed));
  await page.getByLabel("Size").selectOption(size);
  await page.getByLabel("Steps").fill(String(steps));
  await page.getByRole("button", { name: "Generate", exact: true }).click();
}
