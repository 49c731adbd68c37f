// The picture: OpenSeadragon with the server's Deep Zoom tiles, which are replaced without flicker while it is computed; a
// second picture to compare it with.
import OpenSeadragon from "openseadragon";
import { debounced } from "./dom";
import { type Extent, type Rect, Tiles } from "./tiles";

/** Least zoom, in units of that which shows all of the picture. */
const LEAST = 0.7;

/** Visible part of the picture in units of its width and height; may reach beyond it. */
export type Part = Rect;

export class Stage {
  /** Called when the viewport has come to rest. */
  onview: () => void = () => {};
  /** Called with each frame in which the viewport changes. */
  onmove: () => void = () => {};
  /** Called when pixels of the picture may have changed. */
  onpixels: () => void = () => {};
  private readonly viewer: OpenSeadragon.Viewer;
  private picture: Tiles | null = null;
  private refreshing = false;
  private again = false;
  private readonly soon = debounced(120, () => void this.refresh());
  private waiting: HTMLElement | null = null;
  /** True while all of the picture is shown, which stays so when the stage changes its size. */
  private whole = true;
  private other: Tiles | null = null;
  private otherItem: OpenSeadragon.TiledImage | null = null;
  private boundary = 0.5;

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
      minZoomImageRatio: LEAST,
      visibilityRatio: 0.75,
      viewportMargins: { left: 20, top: 20, right: 20, bottom: 20 },
      timeout: 600_000,
    } as OpenSeadragon.Options);
    // The page handles these keys independently of the focus.
    this.viewer.addHandler("canvas-key", (event) => (event.preventDefaultAction = true));
    const view = () => this.onview();
    for (const event of ["animation-finish", "open", "resize"] as const) this.viewer.addHandler(event, view);
    const invalidated = (event: OpenSeadragon.TileInvalidatedEvent) => this.picture?.replace(event);
    this.viewer.addHandler("tile-invalidated", invalidated as never);
    this.viewer.addHandler("open", () => this.opened());
    this.viewer.addHandler("after-resize", () => {
      // Afterwards OpenSeadragon sets a zoom of its own.
      if (this.whole) queueMicrotask(() => this.begin());
    });
    this.viewer.addHandler("viewport-change", () => this.moved());
    const { canvas } = this.viewer as unknown as { canvas: HTMLElement };
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", element.getAttribute("aria-label") ?? "Picture");
    element.removeAttribute("aria-label");
  }

  /** Shows a job's picture without any decoded tiles. */
  open(id: string, extent: Extent): void {
    this.close();
    this.picture = new Tiles(id, extent);
    this.whole = true;
    this.viewer.open(this.picture.source() as never);
  }

  /** Records a decoded tile. `show`: it was decoded just now and is highlighted. */
  tileDone(column: number, row: number, rect: Rect, show: boolean): void {
    if (!this.picture) return;
    this.picture.tileDone(column, row);
    if (show) this.pointOut(rect);
    this.soon();
  }

  /** Records a new preview. */
  previewChanged(): void {
    if (!this.picture) return;
    this.picture.previewChanged();
    this.rest();
    this.soon();
  }

  /** Shows the outline of the picture until there is a preview. */
  wait(): void {
    if (this.waiting || this.picture?.settled) return;
    this.waiting = document.createElement("div");
    this.waiting.className = "waiting";
    this.placeWaiting();
  }

  /** Removes the outline. */
  rest(): void {
    this.waiting?.remove();
    this.waiting = null;
  }

  /** Visible part of the picture in pixels; null: all of it. */
  view(): Rect | null {
    const part = this.part();
    if (!this.picture || !part) return null;
    const { width, height } = this.picture.extent;
    const clamp = (value: number, most: number) => Math.min(Math.max(value, 0), most);
    const x = Math.floor(clamp(part.x * width, width - 1));
    const y = Math.floor(clamp(part.y * height, height - 1));
    const right = Math.ceil(clamp((part.x + part.width) * width, width));
    const bottom = Math.ceil(clamp((part.y + part.height) * height, height));
    if (right <= x || bottom <= y || (right - x === width && bottom - y === height)) return null;
    return { x, y, width: right - x, height: bottom - y };
  }

  /** Visible part of the picture, at this moment of an animation if `current`. */
  part(current = false): Part | null {
    const item = this.viewer.world.getItemAt(0);
    if (!this.picture || !item) return null;
    const { width, height } = this.picture.extent;
    const seen = item.viewportToImageRectangle(this.viewer.viewport.getBounds(current));
    return { x: seen.x / width, y: seen.y / height, width: seen.width / width, height: seen.height / height };
  }

  /** Pixels of the screen for each pixel of the picture; 0: no picture is shown. */
  get scale(): number {
    const item = this.viewer.world.getItemAt(0);
    return item ? item.viewportToImageZoom(this.viewer.viewport.getZoom(true)) : 0;
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

  /** Moves the point (x, y), in units of the picture's width and height, to the centre. */
  centre(x: number, y: number): void {
    if (!this.picture) return;
    const { width, height } = this.picture.extent;
    this.viewer.viewport.panTo(new OpenSeadragon.Point(x, (y * height) / width));
    this.viewer.viewport.applyConstraints();
  }

  /** Shows all of the picture. */
  fit(): void {
    this.viewer.viewport?.goHome();
  }

  /** Shows a pixel of the picture as a pixel of the screen. */
  actual(): void {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return;
    this.viewer.viewport.zoomTo(item.imageToViewportZoom(1));
    this.viewer.viewport.applyConstraints();
  }

  /** The whole picture, small. */
  async overview(): Promise<ImageBitmap | null> {
    return (await this.picture?.overview()) ?? null;
  }

  /** Shows another, finished picture on the right of the boundary. */
  compare(id: string, extent: Extent): void {
    this.endComparison();
    this.other = new Tiles(id, extent);
    if (this.viewer.isOpen()) this.addOther();
  }

  endComparison(): void {
    if (this.other) this.other.closed = true;
    if (this.otherItem) this.viewer.world.removeItem(this.otherItem);
    this.other = null;
    this.otherItem = null;
  }

  /** Moves the boundary of the two pictures to `part` of the stage's width. */
  divide(part: number): void {
    this.boundary = part;
    this.clip();
  }

  /** Removes the picture. */
  close(): void {
    this.endComparison();
    if (this.picture) this.picture.closed = true;
    this.picture = null;
    this.rest();
    this.viewer.clearOverlays();
    this.viewer.close();
  }

  /** True if everything shown is final and up to date; for tests. */
  sharp(): boolean {
    const item = this.viewer.world.getItemAt(0);
    if (!this.picture || !item || this.refreshing || !item.getFullyLoaded()) return false;
    if (this.other && !this.otherItem?.getFullyLoaded()) return false;
    return this.picture.final;
  }

  private opened(): void {
    this.begin();
    this.placeWaiting();
    if (this.other) this.addOther();
    // The viewport may be that of the picture before, which is no change of it.
    this.moved();
    this.onpixels();
  }

  /** Shows all of the picture, at once. A small one may also be shown at 100 %. */
  private begin(): void {
    const { viewport } = this.viewer;
    const item = this.viewer.world.getItemAt(0);
    if (!item) return;
    (viewport as unknown as Limits).minZoomLevel = Math.min(LEAST * viewport.getHomeZoom(), item.imageToViewportZoom(1));
    viewport.goHome(true);
  }

  private moved(): void {
    const { viewport } = this.viewer;
    const home = viewport.getHomeBounds();
    const bounds = viewport.getBounds(false);
    const near = (a: number, b: number) => Math.abs(a - b) < 0.002 * Math.max(home.width, home.height);
    this.whole = near(bounds.x, home.x) && near(bounds.y, home.y) && near(bounds.width, home.width);
    this.clip();
    this.onmove();
  }

  private addOther(): void {
    const { other } = this;
    if (!other) return;
    this.viewer.addTiledImage({
      tileSource: other.source() as never,
      x: 0, y: 0, width: 1,
      success: (event: Event) => {
        const { item } = event as unknown as { item: OpenSeadragon.TiledImage };
        if (other !== this.other) this.viewer.world.removeItem(item);
        else {
          this.otherItem = item;
          this.clip();
        }
      },
    } as never);
  }

  /** Leaves of the second picture what is on the right of the boundary. */
  private clip(): void {
    const { otherItem: item, other } = this;
    if (!item || !other) return;
    const { width, height } = other.extent;
    const across = this.viewer.viewport.getContainerSize().x * this.boundary;
    const point = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(across, 0), true);
    const { x } = item.viewportToImageCoordinates(point);
    const left = Math.min(Math.max(x, 0), width - 0.01);
    item.setOpacity(x < width ? 1 : 0);
    item.setClip(new OpenSeadragon.Rect(left, 0, width - left, height));
  }

  private placeWaiting(): void {
    if (this.waiting && this.picture && this.viewer.isOpen() && !this.waiting.parentElement) {
      const { width, height } = this.picture.extent;
      this.viewer.addOverlay(this.waiting, new OpenSeadragon.Rect(0, 0, 1, height / width));
    }
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
      if (this.again || this.picture?.anyStale) this.soon();
      this.again = false;
      this.onpixels();
    }
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

interface Limits {
  minZoomLevel: number;
}

interface Invalidated {
  requestInvalidate(restore: boolean): Promise<unknown>;
}
