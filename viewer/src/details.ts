// The panel with everything that is known about the picture.
import { copy, createElement, element } from "./dom";
import { bytes, capital, clock, described, moment, operations, readable, SAMPLER_NAMES, SAMPLERS, STATES } from "./format";
import { openPanel } from "./panels";
import { type Shown } from "./shown";

const facts = element("facts");
const copyCommand = element<HTMLButtonElement>("copy-command");
const copyJson = element<HTMLButtonElement>("copy-json");

let of: Shown | null = null;
let text = "";

copyCommand.addEventListener("click", () => of && void copy(command(of), copyCommand));
copyJson.addEventListener("click", () => of && void copy(of.receipt, copyJson));

/** The command that generates the picture again. */
function command({ job }: Shown): string {
  const { seed = 0n, width = 0, height = 0, steps = 1, sampler = 0, bits = 8, labels = {}, guidance } = job.spec ?? {};
  const quoted = (value: string) => (/^[\w.,=-]+$/.test(value) ? value : `'${value.replace(/'/g, "'\\''")}'`);
  return [
    `tessera generate --seed ${seed} --size ${width}x${height} --steps ${steps} --sampler ${SAMPLER_NAMES[sampler]}`,
    bits > 8 ? `--bits ${bits}` : "",
    ...Object.entries(labels).map(([name, value]) => `--label ${quoted(`${name}=${value}`)}`),
    guidance === undefined ? "" : `--guidance ${guidance}`,
    `--out tessera-${seed}.tiff`,
  ].filter(Boolean).join(" ");
}

/** Names and values, in groups. */
function rows(shown: Shown): [string, string][][] {
  const { job, state, device, progress } = shown;
  const { spec, quote } = job;
  if (!spec) return [];
  return [
    [
      ["State", capital(STATES[state])],
      ["Error", capital(shown.error)],
      ["Ordered", moment(job.createTime)],
      [shown.ended ? "Took" : "Running for", clock(progress.elapsed)],
      ["Device", device],
      ["Owner", job.owner],
    ],
    [
      ["Seed", String(spec.seed)],
      ["Model", spec.model.replace(/^models\//, "")],
      ["Size", `${spec.width} × ${spec.height}`],
      ["Steps", [String(spec.steps), ...Object.entries(spec.groupSteps).map(([name, n]) => `${readable(name)} ${n}`)].join(" · ")],
      ["Sampler", SAMPLERS[spec.sampler]],
      ["Strength", spec.strength === undefined ? "" : spec.strength.toFixed(2)],
      ["Guidance", spec.guidance === undefined ? "" : String(spec.guidance)],
      ...Object.entries(spec.labels).map(([name, value]): [string, string] => [capital(readable(name)), described(name, value)]),
    ],
    [
      ["Bits", `${spec.bits || 8} per sample`],
      ["Tiles", `${shown.total} of ${spec.tileSize} × ${spec.tileSize}`],
      ["Memory", quote ? `at most ${bytes(Number(quote.memoryBytes))}` : ""],
      ["Disk", quote ? `at most ${bytes(Number(quote.diskBytes))}` : ""],
      ["Operations", quote ? operations(Number(quote.flops)) : ""],
      ["Id", shown.id],
      ["Notice", (quote?.notices ?? []).map((notice) => `${capital(notice)}.`).join(" ")],
    ],
  ];
}

/** Shows a job, if the panel is open. */
export function renderDetails(shown: Shown | null): void {
  of = shown;
  if (openPanel() !== "details") return;
  copyCommand.hidden = !shown || shown.job.spec?.strength !== undefined;
  copyJson.hidden = !shown?.receipt;
  const groups = shown ? rows(shown).map((group) => group.filter(([, value]) => value)) : [];
  const now = JSON.stringify(groups);
  if (now === text) return;
  text = now;
  facts.replaceChildren(
    ...groups.map((group) => {
      const box = createElement("div");
      for (const [name, value] of group) box.append(createElement("dt", name), createElement("dd", value));
      return box;
    }),
  );
}
