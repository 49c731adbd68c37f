// The picture: OpenSeadragon with the server's Deep Zoom tiles, which change while the picture is computed.
//
// Each shown tile has the time of its request. If its pixels have changed since, it is fetched again and replaced without
// flicker; final tiles are not fetched again.
import OpenSeadragon from "openseadragon";
import { base, headers } from "./api";
import { debounced, pause } from "./dom";

const SIDE = 256;

export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** The shown picture. */
interface Picture {
  id: string;
  width: number;
  height: number;
  /** Columns and rows of the decoder's tiles, and their sides. */
  columns: number;
  rows: number;
  tileWidth: number;
  tileHeight: number;
  lastLevel: number;
  /** Time at which each of the decoder's tiles was done; 0: pending. */
  done: Float64Array;
  /** Time of the last change of the preview. */
  settled: number;
  /** Time at which each shown tile was requested. */
  shown: Map<string, number>;
}

export class Stage {
  /** Called when the viewport may have changed. */
  onview: () => void = () => {};
  private readonly viewer: OpenSeadragon.Viewer;
  private picture: Picture | null = null;
  private moment = 1;
  private refreshing = false;
  private again = false;
  private readonly soon = debounced(120, () => void this.refresh());
  private waiting: HTMLElement | null = null;

  constructor(element: HTMLElement) {
    // OpenSeadragon writes a style into the page, which the page's policy forbids, unless it finds one of this name. This
    // one is of no language that browsers know; the rule itself is in viewer.css.
    const mark = document.createElementNS("urn:tessera", "style");
    mark.setAttribute("data-openseadragon-mobile-css", "false");
    document.head.append(mark);
    this.viewer = OpenSeadragon({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      animationTime: 0.5,
      blendTime: 0.15,
      imageLoaderLimit: 4,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.75,
      viewportMargins: { left: 20, top: 20, right: 20, bottom: 20 },
      timeout: 600_000,
    } as OpenSeadragon.Options);
    // The page handles these keys independently of the focus.
    this.viewer.addHandler("canvas-key", (event) => (event.preventDefaultAction = true));
    const view = () => this.onview();
    for (const event of ["animation-finish", "open", "resize"] as const) this.viewer.addHandler(event, view);
    const invalidated = (event: OpenSeadragon.TileInvalidatedEvent) => this.replace(event);
    this.viewer.addHandler("tile-invalidated", invalidated as never);
    this.viewer.addHandler("open", () => this.placeWaiting());
    const { canvas } = this.viewer as unknown as { canvas: HTMLElement };
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", element.getAttribute("aria-label") ?? "Picture");
    element.removeAttribute("aria-label");
  }

  /** Shows a job's picture without any decoded tiles. */
  open(id: string, width: number, height: number, columns: number, rows: number, tileSize: number): void {
    const lastLevel = Math.ceil(Math.log2(Math.max(width, height, 1)));
    const picture: Picture = {
      id, width, height, columns, rows, lastLevel,
      tileWidth: tileSize || width,
      tileHeight: tileSize || height,
      done: new Float64Array(columns * rows),
      settled: 0,
      shown: new Map(),
    };
    this.picture = picture;
    this.waiting = null;
    this.viewer.clearOverlays();
    const fits = Math.ceil(Math.log2(Math.max(width, height) / SIDE));
    const source = new OpenSeadragon.TileSource({
      width, height,
      tileSize: SIDE,
      tileOverlap: 0,
      minLevel: lastLevel - Math.max(fits, 0),
      maxLevel: lastLevel,
    } as never);
    Object.assign(source, {
      getTileUrl: (level: number, x: number, y: number) => `${base}/jobs/${id}/image_files/${level}/${x}_${y}.png`,
      hasTransparency: () => false,
      downloadTileStart: (job: OpenSeadragon.ImageJob) => {
        const context = job as unknown as Download;
        const { level, x, y } = context.tile;
        context.userData.stop = new AbortController();
        this.fetch(picture, level, x, y, context.userData.stop.signal).then(
          (pixels) => context.finish(pixels, null, "context2d"),
          (error: unknown) => context.fail(String(error), null),
        );
      },
      downloadTileAbort: (job: OpenSeadragon.ImageJob) => (job as unknown as Download).userData.stop?.abort(),
    });
    this.viewer.open(source as never);
  }

  /** Records a decoded tile. `show`: it was decoded just now and is highlighted. */
  tileDone(column: number, row: number, rect: Rect, show: boolean): void {
    if (!this.picture) return;
    this.picture.done[row * this.picture.columns + column] = ++this.moment;
    if (show) this.pointOut(rect);
    this.soon();
  }

  /** Records a new preview. */
  previewChanged(): void {
    if (!this.picture) return;
    this.picture.settled = ++this.moment;
    this.waiting?.remove();
    this.waiting = null;
    this.soon();
  }

  /** Shows the outline of the picture until a level has settled. */
  wait(): void {
    if (this.waiting || this.picture?.settled) return;
    this.waiting = document.createElement("div");
    this.waiting.className = "waiting";
    this.placeWaiting();
  }

  /** Records the end of the job. */
  rest(): void {
    this.waiting?.remove();
    this.waiting = null;
  }

  private placeWaiting(): void {
    if (this.waiting && this.picture && this.viewer.isOpen() && !this.waiting.parentElement) {
      const { width, height } = this.picture;
      this.viewer.addOverlay(this.waiting, new OpenSeadragon.Rect(0, 0, 1, height / width));
    }
  }

  /** Visible part of the picture; null: all of it. */
  view(): Rect | null {
    const item = this.viewer.world.getItemAt(0);
    if (!this.picture || !item) return null;
    const { width, height } = this.picture;
    const seen = item.viewportToImageRectangle(this.viewer.viewport.getBounds(false));
    const clamp = (value: number, most: number) => Math.min(Math.max(value, 0), most);
    const x = Math.floor(clamp(seen.x, width - 1));
    const y = Math.floor(clamp(seen.y, height - 1));
    const right = Math.ceil(clamp(seen.x + seen.width, width));
    const bottom = Math.ceil(clamp(seen.y + seen.height, height));
    if (right <= x || bottom <= y || (right - x === width && bottom - y === height)) return null;
    return { x, y, width: right - x, height: bottom - y };
  }

  zoom(factor: number): void {
    this.viewer.viewport?.zoomBy(factor);
    this.viewer.viewport?.applyConstraints();
  }

  pan(x: number, y: number): void {
    const { viewport } = this.viewer;
    if (!viewport) return;
    const step = 0.2 / viewport.getZoom();
    viewport.panBy(new OpenSeadragon.Point(x * step, y * step));
    viewport.applyConstraints();
  }

  fit(): void {
    this.viewer.viewport?.goHome();
  }

  /** Removes the picture. */
  close(): void {
    this.picture = null;
    this.rest();
    this.viewer.clearOverlays();
    this.viewer.close();
  }

  /** True if everything shown is final and up to date; for tests. */
  sharp(): boolean {
    const picture = this.picture;
    const item = this.viewer.world.getItemAt(0);
    if (!picture || !item || this.refreshing || !item.getFullyLoaded()) return false;
    return picture.done.every((moment) => moment > 0) && ![...picture.shown.keys()].some((key) => this.stale(picture, key));
  }

  private async fetch(picture: Picture, level: number, x: number, y: number, signal?: AbortSignal): Promise<CanvasRenderingContext2D> {
    let asked = this.moment;
    const get = () => {
      asked = this.moment;
      return fetch(`${base}/jobs/${picture.id}/image_files/${level}/${x}_${y}.png`, { headers: headers(), signal });
    };
    let answer = await get().catch(() => null);
    // Retried: the server may become available again.
    while (!answer && !signal?.aborted && picture === this.picture) {
      await pause(1000);
      answer = await get().catch(() => null);
    }
    if (!answer) throw new Error("not wanted any more");
    if (!answer.ok) throw new Error(`tile ${level}/${x}_${y}: ${answer.status}`);
    const bitmap = await createImageBitmap(await answer.blob());
    // What OpenSeadragon draws from as it is: nothing is left for it to convert, and to wait for.
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const pixels = canvas.getContext("2d");
    if (!pixels) throw new Error("the browser has no canvas");
    pixels.drawImage(bitmap, 0, 0);
    bitmap.close();
    picture.shown.set(`${level}/${x}/${y}`, asked);
    return pixels;
  }

  /** True if the pixels of a tile have changed since its request. */
  private stale(picture: Picture, key: string): boolean {
    const [level = 0, x = 0, y = 0] = key.split("/").map(Number);
    const shown = picture.shown.get(key) ?? 0;
    const scale = 2 ** (picture.lastLevel - level);
    const first = { x: x * SIDE * scale, y: y * SIDE * scale };
    const last = {
      x: Math.min((x + 1) * SIDE * scale, picture.width) - 1,
      y: Math.min((y + 1) * SIDE * scale, picture.height) - 1,
    };
    for (let row = Math.floor(first.y / picture.tileHeight); row <= last.y / picture.tileHeight; row++) {
      for (let column = Math.floor(first.x / picture.tileWidth); column <= last.x / picture.tileWidth; column++) {
        const done = picture.done[row * picture.columns + column] ?? 0;
        if (done > shown || (picture.settled > shown && (done === 0 || done > shown))) return true;
      }
    }
    return false;
  }

  /** Fetches loaded tiles again that have changed. One pass at a time. */
  private async refresh(): Promise<void> {
    if (this.refreshing) {
      this.again = true;
      return;
    }
    this.refreshing = true;
    try {
      const item = this.viewer.world.getItemAt(0);
      // `false`: tiles that are not replaced stay.
      if (item) await (item as unknown as Invalidated).requestInvalidate(false);
    } finally {
      this.refreshing = false;
      const { picture } = this;
      const left = picture && [...picture.shown.keys()].some((key) => this.stale(picture, key));
      if (this.again || left) this.soon();
      this.again = false;
    }
  }

  /** Called by OpenSeadragon to refresh a tile. */
  private async replace(event: OpenSeadragon.TileInvalidatedEvent): Promise<void> {
    const { picture } = this;
    const { level, x, y } = event.tile as unknown as { level: number; x: number; y: number };
    const key = `${level}/${x}/${y}`;
    if (!picture || !this.isOf(picture, event) || !this.stale(picture, key)) return;
    const before = picture.shown.get(key);
    try {
      const pixels = await this.fetch(picture, level, x, y);
      if (await event.outdated()) throw new Error("outdated");
      await event.setData(pixels, "context2d");
    } catch {
      // The tile stays stale and is requested again.
      if (before === undefined) picture.shown.delete(key);
      else picture.shown.set(key, before);
    }
  }

  private isOf(picture: Picture, event: OpenSeadragon.TileInvalidatedEvent): boolean {
    const url = (event.tile as unknown as { getUrl(): string }).getUrl();
    return url.startsWith(`${base}/jobs/${picture.id}/`);
  }

  /** Highlights a new tile. */
  private pointOut(rect: Rect): void {
    const item = this.viewer.world.getItemAt(0);
    if (!item || document.hidden) return;
    const place = item.imageToViewportRectangle(rect.x, rect.y, rect.width, rect.height);
    const pixels = this.viewer.viewport.deltaPixelsFromPoints(new OpenSeadragon.Point(place.width, place.height));
    if (pixels.x < 24 || pixels.y < 24) return;
    const frame = document.createElement("div");
    frame.className = "arrived";
    this.viewer.addOverlay(frame, place);
    frame.addEventListener("animationend", () => this.viewer.removeOverlay(frame));
  }
}

/** The used part of OpenSeadragon's image jobs. */
interface Download {
  tile: { level: number; x: number; y: number };
  userData: { stop?: AbortController };
  finish(data: CanvasRenderingContext2D, request: null, type: string): void;
  fail(message: string, request: null): void;
}

interface Invalidated {
  requestInvalidate(restore: boolean): Promise<unknown>;
}
