// The tiles of a picture, which change while it is computed.
//
// Each loaded tile has the time of its request. If its pixels have changed since, it is stale and is fetched again; final
// tiles are not.
import OpenSeadragon from "openseadragon";
import { fetchFile, fileUrl } from "./api";
import { missed } from "./connection";
import { pause } from "./dom";

/** Side of the server's Deep Zoom tiles. */
const SIDE = 256;

/** A rectangle in pixels of the picture. */
export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Dimensions of a picture and of the grid of the decoder's tiles. */
export interface Extent {
  width: number;
  height: number;
  columns: number;
  rows: number;
  /** Side of a tile; 0: the whole picture. */
  tileSize: number;
}

/** A picture whose tiles are shown. */
export class Tiles {
  /** Set once nothing of it is shown any more. */
  closed = false;
  /** Time of the last change of the preview; 0: there was none. */
  settled = 0;
  readonly #lastLevel: number;
  /** Time at which each of the decoder's tiles was done; 0: pending. */
  readonly #done: Float64Array;
  /** Time at which each loaded tile was requested. */
  readonly #loaded = new Map<string, number>();
  #moment = 1;

  constructor(
    readonly id: string,
    readonly extent: Extent,
  ) {
    this.#lastLevel = Math.ceil(Math.log2(Math.max(extent.width, extent.height, 1)));
    this.#done = new Float64Array(extent.columns * extent.rows);
  }

  /** Records a decoded tile. */
  tileDone(column: number, row: number): void {
    this.#done[row * this.extent.columns + column] = ++this.#moment;
  }

  /** Records a new preview. */
  previewChanged(): void {
    this.settled = ++this.#moment;
  }

  /** True if all tiles are decoded and no loaded one is stale. */
  get final(): boolean {
    return this.#done.every((moment) => moment > 0) && !this.anyStale;
  }

  get anyStale(): boolean {
    return [...this.#loaded.keys()].some((key) => this.#isStale(key));
  }

  /** OpenSeadragon's source of the tiles. */
  source(): OpenSeadragon.TileSource {
    const { width, height } = this.extent;
    const fits = Math.ceil(Math.log2(Math.max(width, height) / SIDE));
    const source = new OpenSeadragon.TileSource({
      width, height,
      tileSize: SIDE,
      tileOverlap: 0,
      minLevel: this.#lastLevel - Math.max(fits, 0),
      maxLevel: this.#lastLevel,
    } as never);
    Object.assign(source, {
      getTileUrl: (level: number, x: number, y: number) => this.#url(level, x, y),
      hasTransparency: () => false,
      downloadTileStart: (job: OpenSeadragon.ImageJob) => {
        const context = job as unknown as Download;
        const { level, x, y } = context.tile;
        context.userData.stop = new AbortController();
        this.#load(level, x, y, context.userData.stop.signal).then(
          (pixels) => context.finish(pixels, null, "context2d"),
          (error: unknown) => context.fail(String(error), null),
        );
      },
      downloadTileAbort: (job: OpenSeadragon.ImageJob) => (job as unknown as Download).userData.stop?.abort(),
    });
    return source;
  }

  /** Replaces a stale tile; called by OpenSeadragon to refresh it. */
  async replace(event: OpenSeadragon.TileInvalidatedEvent): Promise<void> {
    const { level, x, y } = event.tile as unknown as { level: number; x: number; y: number };
    const key = `${level}/${x}/${y}`;
    if (this.closed || !this.#owns(event) || !this.#isStale(key)) return;
    const before = this.#loaded.get(key);
    try {
      const pixels = await this.#load(level, x, y);
      if (await event.outdated()) throw new Error("outdated");
      await event.setData(pixels, "context2d");
    } catch {
      // The tile stays stale and is requested again.
      if (before === undefined) this.#loaded.delete(key);
      else this.#loaded.set(key, before);
    }
  }

  /** The whole picture, small. */
  async overview(): Promise<ImageBitmap | null> {
    const answer = await fetchFile(this.#url(Math.min(8, this.#lastLevel), 0, 0)).catch(() => null);
    return answer?.ok ? createImageBitmap(await answer.blob()) : null;
  }

  #url(level: number, x: number, y: number): string {
    return fileUrl(this.id, `image_files/${level}/${x}_${y}.png`);
  }

  #owns(event: OpenSeadragon.TileInvalidatedEvent): boolean {
    return (event.tile as unknown as { getUrl(): string }).getUrl().startsWith(fileUrl(this.id, ""));
  }

  async #load(level: number, x: number, y: number, signal?: AbortSignal): Promise<CanvasRenderingContext2D> {
    let asked = this.#moment;
    const get = () => {
      asked = this.#moment;
      return fetchFile(this.#url(level, x, y), { signal }).catch(() => null);
    };
    let answer = await get();
    // Retried: the server may become available again.
    while (!answer && !signal?.aborted && !this.closed) {
      missed();
      await pause(1000);
      answer = await get();
    }
    if (!answer) throw new Error("not wanted any more");
    if (!answer.ok) throw new Error(`tile ${level}/${x}_${y}: ${answer.status}`);
    const bitmap = await createImageBitmap(await answer.blob());
    // OpenSeadragon draws from a canvas context without a conversion, which would be asynchronous.
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const pixels = canvas.getContext("2d");
    if (!pixels) throw new Error("the browser has no canvas");
    pixels.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.#loaded.set(`${level}/${x}/${y}`, asked);
    return pixels;
  }

  /** True if the pixels of a tile have changed since its request. */
  #isStale(key: string): boolean {
    const { width, height, columns, tileSize } = this.extent;
    const [level = 0, x = 0, y = 0] = key.split("/").map(Number);
    const loaded = this.#loaded.get(key) ?? 0;
    const side = SIDE * 2 ** (this.#lastLevel - level);
    const right = Math.min((x + 1) * side, width) - 1;
    const bottom = Math.min((y + 1) * side, height) - 1;
    const [tileWidth, tileHeight] = [tileSize || width, tileSize || height];
    for (let row = Math.floor((y * side) / tileHeight); row <= bottom / tileHeight; row++) {
      for (let column = Math.floor((x * side) / tileWidth); column <= right / tileWidth; column++) {
        const done = this.#done[row * columns + column] ?? 0;
        if (done > loaded || (done === 0 && this.settled > loaded)) return true;
      }
    }
    return false;
  }
}

/** The used part of OpenSeadragon's image jobs. */
interface Download {
  tile: { level: number; x: number; y: number };
  userData: { stop?: AbortController };
  finish(data: CanvasRenderingContext2D, request: null, type: string): void;
  fail(message: string, request: null): void;
}
