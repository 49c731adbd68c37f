// The viewer in a browser, against the built server: a picture is started, watched, looked at closely, and downloaded.
// `npm ci && npm test`; chromium and target/release/tessera must be there. Screenshots go to target/viewer.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createServer, request as ask } from "node:http";
import path from "node:path";
import { test } from "node:test";
import { kill, open, order, restart, root, serve, setUp, sharp, shots, site, status } from "./harness.mjs";

setUp();

/** A proxy that offers the server under `prefix` and nothing else; resolves with its address and how to end it. */
async function proxy(prefix) {
  const { hostname, port } = new URL(site.url);
  const front = createServer((request, response) => {
    if (!request.url.startsWith(`${prefix}/`)) {
      response.writeHead(404).end();
      return;
    }
    const headers = { ...request.headers, "x-forwarded-prefix": prefix };
    const path = request.url.slice(prefix.length);
    const onward = ask({ hostname, port, path, method: request.method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  });
  await new Promise((resolve) => front.listen(0, "127.0.0.1", resolve));
  const end = () => {
    front.closeAllConnections();
    front.close();
  };
  return { home: `http://127.0.0.1:${front.address().port}${prefix}`, end };
}

/** Colour of the middle of the picture on the screen, as the page's canvas has it. */
function pixel(page, x, y) {
  return page.evaluate(([x, y]) => {
    const canvas = document.querySelector("#stage canvas");
    const scale = canvas.width / canvas.clientWidth;
    return [...canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data];
  }, [x, y]);
}

test("a picture is started, settles, sharpens, and is downloaded", async () => {
  const page = await open(`${site.url}/`);
  await page.getByText("Choose a seed and press Generate.").waitFor();
  const sizes = await page.getByLabel("Size").locator("option").allTextContents();
  assert.ok(sizes.includes("512 × 256") && sizes.includes("2048 × 1024"), String(sizes));
  await page.locator("#quote", { hasText: "memory" }).waitFor();
  await page.screenshot({ path: path.join(shots, "1-empty.png") });

  const before = await page.getByLabel("Seed", { exact: true }).inputValue();
  await page.getByRole("button", { name: "Random seed" }).click();
  assert.match(await page.getByLabel("Seed", { exact: true }).inputValue(), /^\d+$/);
  assert.notEqual(before, "");

  await order(page, { seed: 7, size: "512x256", steps: 6 });
  await page.waitForURL(/#jobs\/[0-9a-f]{32}$/);
  await page.getByRole("status").filter({ hasText: "Finished" }).waitFor();
  await sharp(page);
  assert.equal(await page.locator("#levels .settled").count(), await page.locator("#levels i").count());
  assert.equal(await page.getByRole("button", { name: "Cancel" }).isVisible(), false);
  await page.waitForTimeout(1200);
  await page.screenshot({ path: path.join(shots, "4-finished.png") });

  // What is on the screen is the picture.
  const id = page.url().split("/").pop();
  const answer = await page.request.get(`${site.url}/jobs/${id}/image_files/9/0_0.png`);
  assert.match(answer.headers()["cache-control"], /immutable/);
  const [, , , alpha] = await pixel(page, 640, 400);
  assert.equal(alpha, 255);

  for (const [name, start] of [["TIFF", "49492a00"], ["PNG", "89504e47"]]) {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("link", { name: `Download ${name}` }).click(),
    ]);
    assert.equal(download.suggestedFilename(), `tessera-7-512x256.${name.toLowerCase()}`);
    const bytes = await readFile(await download.path());
    assert.equal(bytes.subarray(0, 4).toString("hex"), start);
    assert.ok(bytes.length > 10_000);
  }
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a picture of one's own is edited, and what is no picture is told", async () => {
  const page = await open(`${site.url}/`);
  // What is typed while the page still asks for the newest picture is not overwritten by that one's numbers.
  await page.route(/ListJobs$/, async (route) => {
    await new Promise((resolve) => setTimeout(resolve, 500));
    await route.continue();
  });
  // A page without a picture in its address asks for the newest.
  await page.goto("about:blank");
  await page.goto(`${site.url}/`);
  await page.getByLabel("Size").locator("option").first().waitFor({ state: "attached" });
  await page.getByLabel("Seed", { exact: true }).fill("31");
  await page.getByLabel("Steps").fill("4");
  const picture = await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(300, 200);
    const context = canvas.getContext("2d");
    const sky = context.createLinearGradient(0, 0, 0, 200);
    sky.addColorStop(0, "#3060c0");
    sky.addColorStop(1, "#203010");
    context.fillStyle = sky;
    context.fillRect(0, 0, 300, 200);
    return [...new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer())];
  });
  const file = { name: "mine.png", mimeType: "image/png", buffer: Buffer.from(picture) };
  await page.getByRole("button", { name: "Edit a picture" }).click();
  await page.getByLabel("JPEG, PNG, TIFF or WebP").setInputFiles(file);
  await page.getByLabel("Strength").fill("0.25");
  await page.screenshot({ path: path.join(shots, "edit.png") });
  await page.getByRole("button", { name: "Edit", exact: true }).click();
  await status(page).filter({ hasText: "Finished" }).waitFor();
  await page.getByText("300 × 200 · 4 steps · DPM++ 2M · edited, strength 0.25").waitFor();
  await sharp(page);
  await page.screenshot({ path: path.join(shots, "edited.png") });
  assert.deepEqual(page.problems, []);

  await page.getByRole("button", { name: "Edit a picture" }).click();
  await page.getByLabel("JPEG, PNG, TIFF or WebP").setInputFiles({ ...file, buffer: Buffer.from("none") });
  await page.getByRole("button", { name: "Edit", exact: true }).click();
  await page.getByRole("alert").getByText("expected a JPEG, PNG, TIFF or WebP picture").waitFor();
  await page.context().close();
});

test("what is looked at comes first, and a picture can be followed from its address and cancelled", async () => {
  const page = await open(`${site.url}/#`);
  await order(page, { seed: 11, size: "2048x1024", steps: 700 });
  await page.getByRole("button", { name: "Cancel" }).waitFor();
  // Close to the lower right corner.
  await page.waitForFunction(() => document.querySelector("#stage canvas"));
  await page.getByRole("button", { name: "Zoom in" }).click();
  await page.getByRole("button", { name: "Zoom in" }).click();
  await page.locator("#stage canvas").first().focus().catch(() => {});
  const told = page.waitForRequest((request) => request.url().endsWith("/SetViewport"));
  for (let i = 0; i < 2; i++) {
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowDown");
  }
  await told;
  await page.waitForTimeout(900);
  await page.getByRole("status").filter({ hasText: /step [1-9]|tile/ }).waitFor();
  await page.screenshot({ path: path.join(shots, "2-denoising.png") });
  const id = page.url().split("/").pop();
  // Somebody else looks at the same picture.
  const other = await open(`${site.url}/#jobs/${id}`);
  await other.getByRole("status").filter({ hasText: /tile|Finished/ }).waitFor();
  await sharp(other);
  await other.waitForTimeout(1200);
  await other.screenshot({ path: path.join(shots, "5-whole.png") });
  await other.getByRole("button", { name: "Pictures" }).click();
  await other.getByRole("link", { name: /Seed 7/ }).waitFor();
  await other.waitForTimeout(800);
  await other.screenshot({ path: path.join(shots, "6-list.png") });
  await other.getByRole("link", { name: /Seed 7/ }).click();
  await other.locator("#about", { hasText: "Seed 7 · 512 × 256" }).waitFor();
  assert.deepEqual(other.problems, []);
  await other.context().close();

  await order(page, { seed: 12, size: "8192x4096", steps: 6 });
  await page.locator("#about", { hasText: "Seed 12" }).waitFor();
  await page.getByRole("status").filter({ hasText: /tile ([7-9]|[12]\d)/ }).waitFor();
  await page.waitForTimeout(300);
  await page.screenshot({ path: path.join(shots, "3-decoding.png") });
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("status").filter({ hasText: "Cancelled" }).waitFor();
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a server that dies and comes back is only waited for", async () => {
  const page = await open(`${site.url}/#`);
  await order(page, { seed: 21, size: "512x256", steps: 1000 });
  await page.getByRole("status").filter({ hasText: /step [1-9]/ }).waitFor();
  const address = new URL(site.url).host;
  await kill();
  await page.getByText("The server does not answer.").waitFor();
  await page.screenshot({ path: path.join(shots, "7-away.png") });
  await serve(address);
  await page.getByRole("status").filter({ hasText: "Finished" }).waitFor();
  await sharp(page);
  assert.equal(await page.getByText("The server does not answer.").isVisible(), false);
  await page.context().close();
});

test("a server that wants a token is asked with one, which the tab keeps", async (t) => {
  await kill();
  const address = new URL(site.url).host;
  // The tests that follow ask a server without tokens, whatever becomes of this one.
  t.after(async () => {
    await kill();
    await serve(address);
  });
  const file = path.join(site.jobs, "tokens");
  const hash = createHash("sha256").update("open sesame").digest("hex");
  await writeFile(file, `anna ${hash}\n`);
  await serve(address, "--tokens", file);
  const page = await open(`${site.url}/`);
  const dialog = page.getByRole("dialog", { name: "This server requires a token" });
  await dialog.waitFor();
  await page.screenshot({ path: path.join(shots, "10-token.png") });
  // The page loads again with each token; who waits only after the click may have missed it.
  const proceed = () => Promise.all([page.waitForEvent("load"), page.getByRole("button", { name: "Continue" }).click()]);
  await page.getByLabel("Bearer token").fill("close");
  await proceed();
  // Another one is asked for.
  await dialog.waitFor();
  await page.getByLabel("Bearer token").fill("open sesame");
  await proceed();
  await page.locator("#quote", { hasText: "memory" }).waitFor();
  assert.equal(await dialog.isVisible(), false);
  // Pictures and downloads come with the token as well.
  await order(page, { seed: 31, size: "512x256", steps: 2 });
  await page.getByRole("status").filter({ hasText: "Finished" }).waitFor();
  await sharp(page);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("link", { name: "Download PNG" }).click(),
  ]);
  assert.equal((await readFile(await download.path())).subarray(0, 4).toString("hex"), "89504e47");
  await page.reload();
  await page.locator("#about", { hasText: "Seed 31" }).waitFor();
  assert.equal(await dialog.isVisible(), false);
  await page.context().close();
});

test("it fits a phone, works by keyboard, and says what is wrong in words", async () => {
  const page = await open(`${site.url}/`, 390, 800);
  await page.locator("#about", { hasText: "Seed" }).waitFor();
  await sharp(page);
  await page.waitForTimeout(800);
  await page.screenshot({ path: path.join(shots, "8-phone.png") });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
  const settings = page.getByRole("button", { name: "Settings" });
  await settings.focus();
  await page.keyboard.press("Enter");
  await page.getByLabel("Seed", { exact: true }).waitFor();
  await page.waitForTimeout(300);
  await page.screenshot({ path: path.join(shots, "9-phone-settings.png") });
  await page.keyboard.press("Escape");
  assert.equal(await settings.getAttribute("aria-expanded"), "false");

  // Everything that can be pressed or filled in has a name.
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, a, input, select")]
      .filter((e) => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()))
      .map((e) => e.outerHTML));
  assert.deepEqual(nameless, []);
  assert.deepEqual(page.problems, []);

  await page.evaluate(() => (location.hash = `jobs/${"0".repeat(32)}`));
  // There is a way on.
  await page.getByText("This picture is not on the server any more.").waitFor();
  await page.screenshot({ path: path.join(shots, "12-missing.png") });
  await page.getByRole("button", { name: "Show the newest picture" }).click();
  await page.locator("#about", { hasText: "Seed" }).waitFor();
  assert.equal(await page.getByText("This picture is not").isVisible(), false);
  await page.context().close();
});

test("dialogs fit phones: everything is inside, and the button can be pressed", async () => {
  for (const [width, height] of [[390, 844], [320, 568]]) {
    const page = await open(`${site.url}/`, width, height);
    await page.getByLabel("Size").locator("option").first().waitFor({ state: "attached" });
    const outside = (id) => page.evaluate((id) => {
      const dialog = document.getElementById(id);
      const inside = (inner, outer) =>
        inner.left >= outer.left && inner.right <= outer.right && inner.top >= outer.top && inner.bottom <= outer.bottom;
      const frame = dialog.getBoundingClientRect();
      const screen = { left: 0, top: 0, right: innerWidth, bottom: innerHeight };
      const shown = [...dialog.querySelectorAll("*")].filter((part) => part.getClientRects().length);
      const parts = shown.filter((part) => !inside(part.getBoundingClientRect(), frame));
      return [...(inside(frame, screen) ? [] : [dialog]), ...parts].map((part) => part.id || part.outerHTML);
    }, id);
    await page.getByRole("button", { name: "Edit a picture" }).click();
    await page.getByRole("button", { name: "Edit", exact: true }).waitFor();
    await page.screenshot({ path: path.join(shots, `11-edit-${width}.png`) });
    assert.deepEqual(await outside("editor"), [], `${width} pixels`);
    await page.keyboard.press("Escape");
    await page.evaluate(() => document.getElementById("token").showModal());
    assert.deepEqual(await outside("token"), [], `${width} pixels`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
});

test("behind a proxy that offers it under a path, the viewer asks for nothing outside of it", async (t) => {
  const { home, end } = await proxy("/pictures/tessera");
  t.after(end);
  const page = await open(`${home}/#`, 1280, 800, home);
  await order(page, { seed: 41, size: "512x256", steps: 2 });
  await page.waitForURL(/\/pictures\/tessera\/#jobs\/[0-9a-f]{32}$/);
  await status(page).filter({ hasText: "Finished" }).waitFor();
  await sharp(page);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("link", { name: "Download PNG" }).click(),
  ]);
  const bytes = await readFile(await download.path());
  assert.equal(bytes.subarray(0, 4).toString("hex"), "89504e47");
  await page.getByRole("button", { name: "Pictures" }).click();
  const thumb = page.getByRole("link", { name: /Seed 41/ }).locator("img[src]");
  await thumb.evaluate((image) => image.decode());
  await page.getByRole("button", { name: "Pictures" }).click();
  await page.getByRole("button", { name: "Edit a picture" }).click();
  await page.getByLabel("JPEG, PNG, TIFF or WebP").setInputFiles({ name: "a.png", mimeType: "image/png", buffer: bytes });
  await page.getByRole("button", { name: "Edit", exact: true }).click();
  await page.getByText("edited, strength 0.50").waitFor();
  await status(page).filter({ hasText: "Finished" }).waitFor();
  const id = page.url().split("/").pop();
  const info = await (await page.request.get(`${home}/jobs/${id}/iiif`)).json();
  assert.equal(info.id, `${home}/jobs/${id}/iiif`);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a model's labels are chosen by keyboard and on a phone, and what nobody chose is left to the seed", async () => {
  await restart("--model", path.join(root, "tests/fixtures/net-g.safetensors"));
  const page = await open(`${site.url}/`);
  const summary = page.locator("#labels summary");
  await page.getByLabel("Steps").focus();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  const time = page.getByLabel("Time", { exact: true });
  assert.deepEqual(await time.locator("option").allTextContents(), ["By the seed", "day", "dusk", "night"]);
  await page.keyboard.press("Tab");
  await page.keyboard.type("du");
  assert.equal(await summary.textContent(), "dusk");
  await page.screenshot({ path: path.join(shots, "10-labels.png") });
  await page.keyboard.press("Escape");
  assert.equal(await time.isVisible(), false);
  await page.getByRole("button", { name: "Generate", exact: true }).click();
  await page.locator("#about", { hasText: "time dusk" }).waitFor();
  await page.getByRole("status").filter({ hasText: "Finished" }).waitFor();
  // Opened anew, the picture brings its labels along.
  await page.reload();
  await summary.filter({ hasText: "dusk" }).waitFor();
  await page.context().close();

  const phone = await open(`${site.url}/`, 320, 640);
  await phone.getByRole("button", { name: "Settings" }).click();
  await phone.locator("#labels summary").filter({ hasText: "dusk" }).click();
  await phone.waitForTimeout(300);
  await phone.screenshot({ path: path.join(shots, "11-labels-phone.png") });
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
  for (const name of ["Time", "Water"]) await phone.getByLabel(name, { exact: true }).selectOption("");
  await phone.getByLabel("Seed", { exact: true }).fill("12");
  await phone.getByRole("button", { name: "Generate", exact: true }).click();
  await phone.locator("#about", { hasText: "Seed 12" }).waitFor();
  await phone.reload();
  await phone.locator("#about", { hasText: "Seed 12" }).waitFor();
  await phone.waitForTimeout(500);
  assert.equal(await phone.locator("#labels summary").textContent(), "Labels");
  assert.deepEqual([...page.problems, ...phone.problems], []);
  await phone.context().close();
});
