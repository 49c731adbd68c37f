// Everything around the picture: list, details, comparison, editing, themes, keys, and what is said when there is no picture.
// The server has two models that compute pictures of 96 x 64 pixels in a moment.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { before, test } from "node:test";
import { kill, open, order, root, serve, setUp, sharp, shots, site, status } from "./harness.mjs";

const fixture = (name) => path.join(root, `tests/fixtures/${name}.safetensors`);
setUp("--model", fixture("net-g"), "--model", fixture("net-a"));

let axe;
before(async () => {
  axe = await readFile(createRequire(import.meta.url).resolve("axe-core"), "utf8");
});

/** Orders a picture and waits for its end. */
async function finish(page, seed, size = "96x64") {
  await order(page, { seed, size, steps: 4 });
  await page.locator("#about", { hasText: `Seed ${seed} ·` }).waitFor();
  await status(page).filter({ hasText: "Finished" }).waitFor();
}

/** Makes a picture; resolves with its part of the address. */
async function finished(seed) {
  const page = await open(`${site.url}/`);
  await page.getByLabel("Size").locator("option").first().waitFor({ state: "attached" });
  await page.locator("#count").evaluate((field) => (field.value = "1"));
  await finish(page, seed);
  const { hash } = new URL(page.url());
  await page.context().close();
  return hash;
}

/** What axe-core finds wrong with the page as it is. */
async function findings(page) {
  await page.evaluate(axe);
  // Colours that fade in are not those that people read.
  await page.evaluate(() => Promise.all(document.getAnimations().map((animation) => animation.finished.catch(() => {}))));
  return page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
  });
}

const list = (page) => page.locator("#pictures li");
const names = (page) => list(page).locator("b").allTextContents();

test("several seeds at once are ordered, of the chosen model, bits and tile size", async () => {
  const page = await open(`${site.url}/`);
  await page.locator("#options summary").click();
  await page.getByLabel("Model", { exact: true }).selectOption("net-a");
  await page.getByLabel("Count").fill("3");
  await page.getByLabel("Bits").selectOption("16");
  await page.getByLabel("Tiles").selectOption("64");
  await page.getByLabel("Sampler").selectOption("Heun");
  assert.equal(await page.locator("#options-chosen").textContent(), "net-a, 3 pictures, Heun, 16 bits, tiles of 64");
  // The other model has no labels.
  assert.equal(await page.locator("#labels").isVisible(), false);
  await order(page, { seed: 5, size: "192x128", steps: 4 });
  await page.locator("#about", { hasText: "Seed 5 · 192 × 128 · 4 steps · Heun · 16 bits" }).waitFor();
  await status(page).filter({ hasText: "Finished" }).waitFor();
  // The list opens with them.
  await list(page).nth(2).waitFor();
  assert.deepEqual(await names(page), ["Seed 7", "Seed 6", "Seed 5"]);
  await page.getByRole("button", { name: "Details", exact: true }).click();
  const facts = await page.locator("#facts").innerText();
  for (const fact of [/Model\s+net-a/, /Bits\s+16 per sample/, /Tiles\s+6 of 64 × 64/]) assert.match(facts, fact);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a running picture tells the time that has passed and is left, and the quote is asked again at its end", async () => {
  const page = await open(`${site.url}/#`);
  await order(page, { seed: 70, size: "768x512", steps: 1000 });
  await page.locator("#time", { hasText: /^(\d+ s|[\d:]+ min) · (about .* left|almost done)$/ }).waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.locator("#time", { hasText: /^after \d/ }).waitFor();
  await order(page, { seed: 71, size: "768x512", steps: 40 });
  await page.locator("#about", { hasText: "Seed 71" }).waitFor();
  // What the form asks for after the order is over.
  await page.waitForTimeout(1500);
  await status(page).filter({ hasText: "Denoising" }).waitFor();
  let quotes = 0;
  page.on("request", (request) => (quotes += request.url().endsWith("/QuoteJob") ? 1 : 0));
  await page.locator("#time", { hasText: /^in \d/ }).waitFor();
  while (quotes === 0) await page.waitForTimeout(100);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("the list is beside the picture; it sorts, searches, selects, downloads and deletes", async () => {
  const page = await open(`${site.url}/#`);
  await finish(page, 80);
  await finish(page, 81, "384x256");
  await page.getByRole("button", { name: "Edit this picture" }).click();
  assert.equal(await page.getByRole("radio", { name: "This picture" }).isChecked(), true);
  await page.getByLabel("Strength").fill("0.35");
  await page.getByLabel("Seed", { exact: true }).evaluate((field) => (field.value = "82"));
  await page.screenshot({ path: path.join(shots, "20-edit-this.png") });
  await page.getByRole("button", { name: "Edit", exact: true }).click();
  await page.locator("#about", { hasText: /^Seed 82 · 384 × 256 · 4 steps .*edited, strength 0\.35/ }).waitFor();
  await status(page).filter({ hasText: "Finished" }).waitFor();

  await page.keyboard.press("g");
  await list(page).nth(2).waitFor();
  const [zoom, panel] = await Promise.all(["#full", "#jobs"].map((id) => page.locator(id).boundingBox()));
  assert.ok(zoom.x + zoom.width <= panel.x, "the list does not cover the buttons of the picture");
  await page.waitForFunction(() => window.tessera.view() === null);
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  // An edit is marked as such.
  assert.match((await names(page))[0], /^Seed 82edited 0\.35$/);
  await page.screenshot({ path: path.join(shots, "21-list.png") });
  await page.getByLabel("Sort by").selectOption("Seed");
  const seeds = (await names(page)).map((name) => Number(/\d+/.exec(name)[0]));
  assert.deepEqual(seeds, seeds.toSorted((a, b) => a - b));
  await page.getByLabel("Search").fill("finished 384x256");
  await page.waitForFunction(() => document.querySelectorAll("#pictures li").length === 2);
  assert.match(await page.locator("#total").textContent(), /^2 of \d+$/);

  // By keyboard: down into the list, two selected.
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Space");
  await page.keyboard.press("Shift+ArrowDown");
  await page.getByText("2 selected").waitFor();
  const downloads = [];
  page.on("download", (download) => downloads.push(download.suggestedFilename()));
  await page.getByRole("button", { name: "Download", exact: true }).click();
  await page.waitForTimeout(1500);
  assert.deepEqual(downloads.sort(), ["tessera-81-384x256.png", "tessera-82-384x256.png"]);
  await page.getByRole("button", { name: "Compare", exact: true }).first().click();
  await page.waitForURL(/#jobs\/[0-9a-f]{32}\/compare\/[0-9a-f]{32}$/);
  await page.getByRole("group", { name: "Comparison" }).waitFor();

  await page.locator("#chosen-delete").click();
  assert.equal(await page.locator("#chosen-delete").textContent(), "Really?");
  await page.screenshot({ path: path.join(shots, "22-selected.png") });
  await page.locator("#chosen-delete").click();
  await page.getByText("No picture has all of these words.").waitFor();
  await page.getByLabel("Search").fill("");
  await list(page).first().waitFor();
  assert.ok(!(await names(page)).some((name) => /Seed 8[12]/.test(name)));
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("two pictures are compared across a boundary that keys move, and the link says so", async () => {
  const page = await open(`${site.url}/#`, 1280, 800, site.url, { permissions: ["clipboard-read", "clipboard-write"] });
  await finish(page, 90);
  const first = page.url();
  await finish(page, 91);
  await sharp(page);
  const pixels = () => page.evaluate(() => {
    const canvas = document.querySelector("#stage canvas");
    const pen = canvas.getContext("2d");
    const [part, middle] = [Math.round(canvas.width * 0.3), Math.round(canvas.height / 2)];
    return [0.1, 0.6].map((from) => [...pen.getImageData(Math.round(canvas.width * from), middle, part, 1).data].join());
  });
  await page.waitForTimeout(600);
  const alone = await pixels();
  await page.keyboard.press("c");
  await page.getByLabel("Compare with").selectOption("Seed 90");
  await sharp(page);
  await page.waitForTimeout(600);
  const both = await pixels();
  assert.equal(both[0], alone[0]);
  assert.notEqual(both[1], alone[1]);
  await page.getByLabel("Boundary of the two pictures").focus();
  await page.keyboard.press("Home");
  await page.waitForTimeout(300);
  const other = await pixels();
  assert.notEqual(other[0], alone[0]);
  assert.equal(other[1], both[1]);
  await page.screenshot({ path: path.join(shots, "23-compare.png") });
  await page.getByRole("button", { name: "Copy the link" }).click();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  assert.equal(link, page.url());
  assert.ok(link.endsWith(`/compare/${first.split("/").pop()}`));
  const again = await open(link);
  await again.getByRole("group", { name: "Comparison" }).waitFor();
  await again.locator("#compare-left", { hasText: "Seed 91" }).waitFor();
  await again.keyboard.press("Escape");
  await again.waitForURL((address) => !address.hash.includes("compare"));
  assert.deepEqual([...page.problems, ...again.problems], []);
  await again.context().close();
  await page.context().close();
});

test("zoom is told in percent, an overview shows where one is, and keys reach everything", async () => {
  const page = await open(`${site.url}/`);
  await page.locator("#about", { hasText: "Seed 91" }).waitFor();
  await sharp(page);
  const map = page.getByRole("img", { name: "Overview" });
  assert.equal(await map.isVisible(), false);
  await page.keyboard.press("1");
  await page.locator("#actual", { hasText: /^100 %$/ }).waitFor();
  for (let i = 0; i < 4; i++) await page.keyboard.press("+");
  await page.keyboard.press("0");
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight");
  await map.waitFor();
  await page.waitForTimeout(700);
  const before = await page.evaluate(() => window.tessera.view());
  const box = await map.boundingBox();
  await page.mouse.click(box.x + 5, box.y + box.height / 2);
  await page.waitForTimeout(900);
  const after = await page.evaluate(() => window.tessera.view());
  assert.ok(after.x < before.x, `${JSON.stringify(before)} ${JSON.stringify(after)}`);
  await page.keyboard.press("PageDown");
  await page.locator("#about", { hasText: "Seed 90" }).waitFor();
  await page.keyboard.press("PageUp");
  await page.locator("#about", { hasText: "Seed 91" }).waitFor();
  await page.keyboard.press("f");
  await page.waitForFunction(() => document.fullscreenElement?.id === "view");
  await page.keyboard.press("f");
  await page.waitForFunction(() => !document.fullscreenElement);
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keyboard" }).waitFor();
  await page.keyboard.press("Escape");
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("the theme is the system's until the other one is chosen", async () => {
  const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const page = await open(`${site.url}/`, 1280, 800, site.url, { colorScheme: "light" });
  const light = await ground(page);
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await ground(page);
  assert.notEqual(light, dark);
  const theme = page.getByRole("button", { name: "Light theme" });
  await theme.click();
  assert.equal(await ground(page), light);
  assert.equal(await theme.getAttribute("aria-pressed"), "true");
  await page.reload();
  await page.waitForFunction((colour) => getComputedStyle(document.body).backgroundColor === colour, light);
  await theme.click();
  assert.equal(await ground(page), dark);
  await page.context().close();
});

test("a picture that is cancelled at once says so and can be generated again", async () => {
  const page = await open(`${site.url}/#`);
  // A job in front of it keeps it in the queue.
  await order(page, { seed: 100, size: "768x512", steps: 1000 });
  await page.locator("#about", { hasText: "Seed 100" }).waitFor();
  await page.locator("#options summary").click();
  await page.getByLabel("Count").fill("6");
  await page.keyboard.press("Escape");
  await order(page, { seed: 101, size: "768x512", steps: 1000 });
  await page.locator("#about", { hasText: "Seed 101" }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll("#pictures b").length > 6);
  await page.getByRole("link", { name: /Seed 106/ }).click();
  await page.locator("#about", { hasText: "Seed 106" }).waitFor();
  await status(page).filter({ hasText: "Waiting for its turn" }).waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("Cancelled before there was anything to see.").waitFor();
  await page.screenshot({ path: path.join(shots, "24-cancelled.png") });
  assert.deepEqual(await findings(page), []);
  const before = page.url();
  await page.getByRole("button", { name: "Generate again" }).click();
  await page.waitForURL((address) => address.href !== before);
  await status(page).filter({ hasText: "Waiting for its turn" }).waitFor();
  // All of them go at once.
  await page.getByLabel("Search").fill("768x512 10");
  await page.waitForFunction(() => document.querySelectorAll("#pictures li").length === 8);
  await list(page).first().getByRole("link").focus();
  await page.keyboard.press("Control+a");
  await page.keyboard.press("Delete");
  await page.keyboard.press("Enter");
  await page.getByText("No picture has all of these words.").waitFor();
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

/** An answer of ListJobs over gRPC-Web: its first job with the field's head, and the trailers after the message. */
async function firstJob(response) {
  const body = await response.body();
  let [length, shift, at] = [0, 0, 6];
  for (let more = true; more; at++, shift += 7) {
    length |= (body[at] & 0x7f) << shift;
    more = (body[at] & 0x80) !== 0;
  }
  return { response, job: body.subarray(5, at + length), trailers: body.subarray(5 + body.readUInt32BE(1)) };
}

test("ten thousand pictures: few rows exist, the first page is small, the last one is reached by a key", async () => {
  const page = await open(`${site.url}/`);
  await page.locator("#about", { hasText: "Seed" }).waitFor();
  // Pages of the server's own answer, with other ids: those of the newest job, counted down.
  const sizes = [];
  let template;
  await page.route(/ListJobs$/, async (route) => {
    const body = route.request().postDataBuffer();
    const token = /\x12 ([0-9a-f]{32})/.exec(body.toString("latin1"))?.[1];
    template ??= await firstJob(await route.fetch());
    const total = 10_000;
    const from = token ? total - parseInt(token, 16) : 0;
    const size = Math.min(token ? 1000 : 100, total - from);
    sizes.push(size);
    const id = (index) => (total - 1 - index).toString(16).padStart(32, "0");
    const jobs = Array.from({ length: size }, (_, i) => {
      const job = Buffer.from(template.job);
      job.write(id(from + i), job.indexOf("jobs/") + 5, "latin1");
      return job;
    });
    const next = from + size < total ? Buffer.from(`\x12 ${id(from + size - 1)}`, "latin1") : Buffer.alloc(0);
    const message = Buffer.concat([...jobs, next]);
    const head = Buffer.alloc(5);
    head.writeUInt32BE(message.length, 1);
    await route.fulfill({ response: template.response, body: Buffer.concat([head, message, template.trailers]) });
  });
  await page.getByRole("button", { name: "Pictures" }).click();
  await page.locator("#total", { hasText: /^10,000$/ }).waitFor();
  assert.equal(sizes[0], 100);
  assert.ok((await list(page).count()) < 40);
  await list(page).first().getByRole("link").focus();
  await page.keyboard.press("End");
  const last = page.locator("#pictures li[aria-posinset='10000'] a");
  await last.waitFor();
  assert.equal(await last.evaluate((link) => link === document.activeElement), true);
  assert.ok((await list(page).count()) < 40);
  await page.getByLabel("Search").fill(`${"0".repeat(30)}ff`);
  await page.waitForFunction(() => document.querySelectorAll("#pictures li").length === 1);
  assert.equal(await page.locator("#total").textContent(), "1 of 10,000");
  await page.context().close();
});

test("axe-core finds nothing, in the dark theme and in the light one at 320 pixels", async () => {
  // One to compare it with.
  await finished(110);
  const picture = await finished(111);
  for (const [width, height, colorScheme] of [[1400, 900, "dark"], [320, 640, "light"]]) {
    const page = await open(`${site.url}/${picture}`, width, height, site.url, { colorScheme });
    await page.locator("#about", { hasText: "Seed" }).waitFor();
    await sharp(page);
    const check = async (state) => {
      assert.deepEqual(await findings(page), [], `${state} ${width} ${colorScheme}`);
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${state}: nothing sticks out`);
    };
    await check("finished");
    if (width < 981) await page.getByRole("button", { name: "Settings" }).click();
    await page.locator("#options summary").click();
    await check("settings");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Pictures" }).click();
    await list(page).first().waitFor();
    await list(page).first().getByRole("link").focus();
    await page.keyboard.press("Space");
    await page.getByText("1 selected").waitFor();
    await check("list");
    await page.getByRole("button", { name: "Close the list" }).click();
    await page.getByRole("button", { name: "Compare", exact: true }).click();
    await page.getByRole("group", { name: "Comparison" }).waitFor();
    await check("comparison");
    await page.getByRole("button", { name: "End the comparison" }).click();
    await page.getByRole("button", { name: "Details", exact: true }).click();
    await check("details");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Edit this picture" }).click();
    await check("editing");
    await page.getByRole("radio", { name: "A file" }).check();
    await check("editing a file");
    await page.keyboard.press("Escape");
    await page.evaluate(() => (location.hash = `jobs/${"0".repeat(32)}`));
    await page.getByText("This picture is not on the server any more.").waitFor();
    await check("missing");
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
});

test("phones in landscape show the whole picture with margins, and at 320 pixels nothing sticks out", async () => {
  const picture = await finished(112);
  for (const [width, height] of [[844, 390], [568, 320], [320, 640]]) {
    const page = await open(`${site.url}/${picture}`, width, height);
    await page.locator("#about", { hasText: "Seed" }).waitFor();
    await sharp(page);
    await page.waitForTimeout(300);
    const margins = await page.evaluate(() => {
      const { width, height } = document.getElementById("stage").getBoundingClientRect();
      const canvas = document.querySelector("#stage canvas");
      const scale = canvas.width / width;
      const alpha = (x, y) => canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data[3];
      return [alpha(width / 2, 8), alpha(width / 2, height - 8), alpha(8, height / 2), alpha(width - 8, height / 2), alpha(width / 2, height / 2)];
    });
    assert.deepEqual(margins, [0, 0, 0, 0, 255], `${width} x ${height}`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
    await page.screenshot({ path: path.join(shots, `25-phone-${width}.png`) });
    await page.context().close();
  }
});

test("a notice goes when the server is back, and the page goes on", async () => {
  const page = await open(`${site.url}/`);
  await page.locator("#about", { hasText: "Seed" }).waitFor();
  const address = new URL(site.url).host;
  await kill();
  await page.getByRole("button", { name: "Generate", exact: true }).click();
  await page.getByText("The server does not answer.").waitFor();
  await page.screenshot({ path: path.join(shots, "26-away.png") });
  await serve(address, "--model", fixture("net-g"), "--model", fixture("net-a"));
  await page.getByText("The server does not answer.").waitFor({ state: "detached" });
  await order(page, { seed: 120, size: "96x64", steps: 4 });
  await page.locator("#about", { hasText: "Seed 120" }).waitFor();
  await status(page).filter({ hasText: "Finished" }).waitFor();
  await page.context().close();
});
