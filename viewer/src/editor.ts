// The dialog that edits a picture: the one that is shown, or one from a file.
import { Code, ConnectError } from "@connectrpc/connect";
import { base, fetchFile, fileUrl } from "./api";
import { element, showAlert } from "./dom";
import { bytes, SAMPLER_NAMES, title } from "./format";
import { type Form, type Settings } from "./form";
import { JobState } from "./gen/tessera/v1/job_service_pb";
import { type Shown } from "./shown";

const dialog = element<HTMLDialogElement>("editor");
const editing = element<HTMLFormElement>("editing");
const file = element<HTMLInputElement>("file");
const strength = element<HTMLInputElement>("strength");
const thumb = element<HTMLImageElement>("file-thumb");
const name = element("file-name");
const go = element<HTMLButtonElement>("editor-go");

export class Editor {
  #shown: Shown | null = null;

  /** `ordered`: called with the id of a new job. `failed`: called with the errors of requests. */
  constructor(
    private readonly form: Form,
    private readonly ordered: (id: string) => void,
    private readonly failed: (error: unknown) => void,
  ) {
    element("editor-close").addEventListener("click", () => dialog.close());
    strength.addEventListener("input", () => {
      element("strength-value").textContent = Number(strength.value).toFixed(2);
    });
    file.addEventListener("change", () => this.#showFile());
    editing.addEventListener("change", () => this.#showSource());
    editing.addEventListener("submit", () => void this.#submit());
  }

  /** Opens the dialog. `own`: with the picture that is shown as the source, if it is finished. */
  open(shown: Shown | null, own: boolean): void {
    if (!this.form.reportValidity()) return;
    this.#shown = shown?.state === JobState.FINISHED ? shown : null;
    element("source").hidden = !this.#shown;
    this.#radio(own && this.#shown ? "shown" : "file").checked = true;
    if (this.#shown) {
      element("shown-name").textContent = title(this.#shown.job);
      void this.#showThumb(this.#shown);
    }
    this.#showSource();
    if (!dialog.open) dialog.showModal();
  }

  /** Opens the dialog with a file that was dropped on the page. */
  drop(files: FileList, shown: Shown | null): void {
    if (!this.form.reportValidity()) return;
    file.files = files;
    this.#showFile();
    this.open(shown, false);
  }

  get #own(): boolean {
    return this.#shown !== null && this.#radio("shown").checked;
  }

  #radio(value: string): HTMLInputElement {
    const found = editing.querySelector<HTMLInputElement>(`input[name=source][value=${value}]`);
    if (!found) throw new Error(`no source ${value}`);
    return found;
  }

  #showSource(): void {
    const own = this.#own;
    element("file-label").hidden = own;
    file.hidden = own;
    file.required = !own;
    element("shown-picture").hidden = !own;
  }

  #showFile(): void {
    const [picture] = file.files ?? [];
    URL.revokeObjectURL(thumb.src);
    thumb.hidden = true;
    name.textContent = picture ? `${picture.name}, ${bytes(picture.size)}` : "Choose a file, or drop one here";
    if (!picture) return;
    // Browsers can't show TIFF.
    thumb.onload = () => (thumb.hidden = false);
    thumb.src = URL.createObjectURL(picture);
  }

  async #showThumb({ id, job }: Shown): Promise<void> {
    const last = Math.ceil(Math.log2(Math.max(job.spec?.width ?? 1, job.spec?.height ?? 1)));
    const answer = await fetchFile(fileUrl(id, `image_files/${Math.min(8, last)}/0_0.png`)).catch(() => null);
    if (!answer?.ok) return;
    const image = element<HTMLImageElement>("shown-thumb");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(await answer.blob());
  }

  async #submit(): Promise<void> {
    const [picture] = file.files ?? [];
    const { settings } = this.form;
    go.disabled = true;
    try {
      if (this.#own && this.#shown) {
        const answer = await fetchFile(fileUrl(this.#shown.id, "image.png"));
        if (answer.ok) await this.#send(await answer.blob(), settings);
        else showAlert("The picture can't be edited: it is not on the server any more.");
      } else if (picture) await this.#send(picture, settings);
    } catch (error) {
      this.failed(error);
    } finally {
      go.disabled = false;
    }
  }

  async #send(picture: Blob, { model, seed, steps, sampler, bits, tileSize, labels, guidance }: Settings): Promise<void> {
    const query = new URLSearchParams({
      model,
      strength: strength.value,
      seed: String(seed),
      steps: String(steps),
      sampler: SAMPLER_NAMES[sampler],
      bits: String(bits),
      tile_size: String(tileSize),
      ...(guidance === undefined ? {} : { guidance: String(guidance) }),
      ...Object.fromEntries(Object.entries(labels).map(([label, value]) => [`labels.${label}`, value])),
    });
    // For an unknown type the server reports the accepted ones.
    const type = picture.type.startsWith("image/") ? picture.type : "image/x-unknown";
    const answer = await fetchFile(`${base}/jobs?${query}`, { method: "POST", headers: { "content-type": type }, body: picture });
    if (answer.status === 401) throw new ConnectError("a bearer token is needed", Code.Unauthenticated);
    if (!answer.ok) {
      const { detail } = (await answer.json()) as { detail: string };
      showAlert(`The picture can't be edited: ${detail}.`);
      return;
    }
    const { name: job } = (await answer.json()) as { name: string };
    this.ordered(job.replace(/^jobs\//, ""));
  }
}
