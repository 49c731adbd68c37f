// The overview: the whole picture, small, with the visible part. It is shown while that is not all of it.
import { debounced, element } from "./dom";
import { type Stage } from "./stage";

/** Longest side in pixels of the screen. */
const SIDE = 168;

const canvas = element<HTMLCanvasElement>("map");

export class Overview {
  #picture: ImageBitmap | null = null;
  #width = 0;
  #height = 0;
  #changed = true;
  readonly #soon = debounced(400, () => void this.#fetch());

  constructor(private readonly stage: Stage) {
    const move = (event: PointerEvent) => {
      const box = canvas.getBoundingClientRect();
      stage.centre((event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      move(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event);
    });
  }

  /** Begins with another picture. */
  open(width: number, height: number): void {
    const scale = SIDE / Math.max(width, height);
    this.#width = Math.max(Math.round(width * scale), 24);
    this.#height = Math.max(Math.round(height * scale), 24);
    this.#picture = null;
    this.#changed = true;
    canvas.hidden = true;
  }

  /** Records that the picture has changed: it is fetched again if the overview is shown. */
  refresh(): void {
    this.#changed = true;
    this.draw();
  }

  async #fetch(): Promise<void> {
    this.#changed = false;
    const picture = await this.stage.overview();
    if (!picture) return;
    this.#picture?.close();
    this.#picture = picture;
    this.draw();
  }

  draw(): void {
    const part = this.stage.part(true);
    const inside = (from: number, length: number) => from <= 0.002 && from + length >= 0.998;
    canvas.hidden = !part || !this.#width || (inside(part.x, part.width) && inside(part.y, part.height));
    if (canvas.hidden || !part) return;
    if (this.#changed) this.#soon();
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [this.#width * dense, this.#height * dense];
    if (canvas.width !== Math.round(width) || canvas.height !== Math.round(height)) {
      [canvas.width, canvas.height] = [Math.round(width), Math.round(height)];
      [canvas.style.width, canvas.style.height] = [`${this.#width}px`, `${this.#height}px`];
    }
    const pen = canvas.getContext("2d");
    if (!pen) return;
    pen.clearRect(0, 0, width, height);
    if (this.#picture) pen.drawImage(this.#picture, 0, 0, width, height);
    const line = 1.5 * dense;
    const clamp = (value: number, most: number) => Math.min(Math.max(value, line / 2), most - line / 2);
    const [left, top] = [clamp(part.x * width, width), clamp(part.y * height, height)];
    const right = clamp((part.x + part.width) * width, width);
    const bottom = clamp((part.y + part.height) * height, height);
    // Dims the area outside the viewport.
    pen.fillStyle = "#0006";
    pen.beginPath();
    pen.rect(0, 0, width, height);
    pen.rect(left, top, right - left, bottom - top);
    pen.fill("evenodd");
    pen.lineWidth = line;
    pen.strokeStyle = "#fff";
    pen.strokeRect(left, top, Math.max(right - left, line), Math.max(bottom - top, line));
  }
}
