// Downloads of finished pictures.
import { fetchFile, fileUrl, token } from "./api";
import { createElement, pause, showAlert } from "./dom";

/** Time between two downloads; browsers drop those that follow each other at once. */
const GAP = 350;

export type Kind = "tiff" | "png";

/** Downloads the picture of a job. Links do not send the token: with one, the file is fetched first. */
export async function download(id: string, seed: bigint, kind: Kind): Promise<void> {
  const link = createElement("a");
  link.download = `tessera-${seed}.${kind}`;
  link.href = fileUrl(id, `image.${kind}`);
  if (token()) {
    const answer = await fetchFile(link.href).catch(() => null);
    if (!answer?.ok) {
      showAlert("The picture can't be downloaded.");
      return;
    }
    link.href = URL.createObjectURL(await answer.blob());
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
  link.click();
}

/** Downloads several pictures as PNG. */
export async function downloadAll(pictures: { id: string; seed: bigint }[]): Promise<void> {
  for (const { id, seed } of pictures) {
    await download(id, seed, "png");
    await pause(GAP);
  }
}
