// List of the server's pictures: sorted, searched, and several selected at once. Only the rows that can be seen exist.
import { fetchFile, fileUrl, jobs, report } from "./api";
import { comparable } from "./compare";
import { confirmed, createElement, debounced, element } from "./dom";
import { downloadAll } from "./download";
import { isEdit, STATES } from "./format";
import { type Job, JobState } from "./gen/tessera/v1/job_service_pb";
import { onPanel, openPanel } from "./panels";
import { type Entry, type Order, Pictures } from "./pictures";

/** Height of a row in pixels, as in viewer.css. */
const ROW = 68;
/** Rows beyond the visible ones on both sides. */
const SPARE = 6;
/** Time between two questions for changes, in milliseconds. */
const INTERVAL = 3000;

const scroll = element("scroll");
const list = element("pictures");
const none = element("none");
const search = element<HTMLInputElement>("search");
const sort = element<HTMLSelectElement>("sort");
const chosen = element("chosen");
const compareButton = element<HTMLButtonElement>("chosen-compare");
const downloadButton = element<HTMLButtonElement>("chosen-download");
const deleteButton = element<HTMLButtonElement>("chosen-delete");

/** A row that exists. */
interface Row {
  element: HTMLLIElement;
  link: HTMLAnchorElement;
  check: HTMLInputElement;
  remove: HTMLButtonElement;
  name: HTMLElement;
  facts: HTMLElement;
  thumb: HTMLImageElement;
  /** State and progress that the thumbnail shows. */
  shows: string;
  /** Aborts the download of a thumbnail. */
  stop: AbortController;
}

export class Gallery {
  readonly #pictures = new Pictures();
  #entries: Entry[] = [];
  #rows = new Map<string, Row>();
  readonly #selected = new Set<string>();
  /** Id of the row that Tab reaches. */
  #active = "";
  /** Row from which a range is selected. */
  #anchor = "";
  #timer = 0;
  #loading = false;
  /** Thumbnails are fetched when scrolling has come to rest. */
  readonly #thumbs = debounced(80, () => this.#fetchThumbs());

  /** `current`: id of the picture that is shown. */
  constructor(private readonly current: () => string | null) {
    onPanel((panel) => (panel === "jobs" ? this.#begin() : clearInterval(this.#timer)));
    scroll.addEventListener("scroll", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(scroll);
    search.addEventListener("input", () => this.#update(true));
    sort.addEventListener("change", () => this.#update(true));
    list.addEventListener("keydown", (event) => this.#key(event));
    search.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown") return;
      event.preventDefault();
      this.#focus(0);
    });
    element("chosen-none").addEventListener("click", () => {
      this.#selected.clear();
      this.#draw();
      search.focus();
    });
    compareButton.addEventListener("click", () => {
      const [first, second] = this.#chosen();
      if (first && second) location.hash = `jobs/${first.id}/compare/${second.id}`;
    });
    downloadButton.addEventListener("click", () => {
      const finished = this.#chosen().filter(({ job }) => job.state === JobState.FINISHED);
      void downloadAll(finished.map(({ id, job }) => ({ id, seed: job.spec?.seed ?? 0n })));
    });
    confirmed(deleteButton, "Really?", () => void this.#delete([...this.#selected]));
  }

  /** Shows what has changed, now. */
  async refresh(): Promise<void> {
    if (openPanel() !== "jobs") return;
    try {
      await this.#pictures.refresh();
      this.#update();
    } catch (error) {
      report(error);
    }
  }

  #begin(): void {
    this.#pictures.clear();
    this.#active = this.current() ?? "";
    clearInterval(this.#timer);
    this.#timer = window.setInterval(() => void this.refresh(), INTERVAL);
    this.#draw();
    void this.#load();
  }

  /** Fetches all pages, one after another. */
  async #load(): Promise<void> {
    if (this.#loading) return;
    this.#loading = true;
    try {
      await this.#pictures.refresh();
      this.#update();
      while (!this.#pictures.complete && openPanel() === "jobs") {
        await this.#pictures.fetchMore();
        this.#update();
      }
    } catch (error) {
      report(error);
    } finally {
      this.#loading = false;
    }
  }

  /** Sorts and searches again. `top`: shows the first row. */
  #update(top = false): void {
    this.#entries = this.#pictures.select(search.value, sort.value as Order);
    const all = this.#pictures.entries;
    const known = new Set(all.map(({ id }) => id));
    for (const id of this.#selected) if (!known.has(id)) this.#selected.delete(id);
    const number = new Intl.NumberFormat("en");
    const found = this.#entries.length;
    const count = all.length ? number.format(all.length) + (this.#pictures.complete ? "" : " …") : "";
    element("total").textContent = found === all.length ? count : `${number.format(found)} of ${count}`;
    none.hidden = found > 0;
    scroll.hidden = found === 0;
    none.textContent = all.length ? "No picture has all of these words." : this.#pictures.complete ? "None yet." : "";
    if (top) scroll.scrollTop = 0;
    this.#draw();
  }

  /** Makes the rows that can be seen. The row with the focus stays. */
  #draw(): void {
    if (openPanel() !== "jobs") return;
    list.style.height = `${this.#entries.length * ROW}px`;
    const first = Math.max(Math.floor(scroll.scrollTop / ROW) - SPARE, 0);
    const last = Math.min(Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + SPARE, this.#entries.length);
    if (!this.#entries.some(({ id }) => id === this.#active)) this.#active = this.#entries[0]?.id ?? "";
    const rows = new Map<string, Row>();
    const indices = Array.from({ length: Math.max(last - first, 0) }, (_, i) => first + i);
    if (list.contains(document.activeElement)) {
      const index = this.#entries.findIndex(({ id }) => id === this.#active);
      if (index >= 0 && index < first) indices.unshift(index);
      if (index >= last) indices.push(index);
    }
    for (const index of indices) {
      const entry = this.#entries[index];
      if (!entry) continue;
      const row = this.#rows.get(entry.id) ?? this.#make(entry);
      this.#fill(row, entry, index);
      rows.set(entry.id, row);
    }
    for (const [id, row] of this.#rows) if (!rows.has(id)) row.element.remove();
    // In the order of the list, for readers of the screen; rows that are in place are not moved.
    let before: Element | null = null;
    for (const { element: item } of rows.values()) {
      const next: Element | null = before ? before.nextElementSibling : list.firstElementChild;
      if (next !== item) list.insertBefore(item, next);
      before = item;
    }
    this.#rows = rows;
    this.#showSelection();
    this.#thumbs();
  }

  #make({ id, job }: Entry): Row {
    const item = createElement("li");
    const check = createElement("input");
    check.type = "checkbox";
    check.setAttribute("aria-label", `Select seed ${job.spec?.seed ?? 0n}`);
    check.addEventListener("click", (event) => this.#select(id, check.checked, event.shiftKey));
    const link = createElement("a");
    link.href = `#jobs/${id}`;
    link.addEventListener("click", (event) => {
      this.#active = id;
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;
      // As in other lists, these keys select.
      event.preventDefault();
      this.#select(id, !this.#selected.has(id), event.shiftKey);
    });
    const thumb = createElement("img", "", "thumb");
    thumb.alt = "";
    const text = createElement("span");
    const name = createElement("b");
    const facts = createElement("small");
    text.append(name, facts);
    link.append(thumb, text);
    const remove = createElement("button", "Delete");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete the picture of seed ${job.spec?.seed ?? 0n}`);
    confirmed(remove, "Really?", () => void this.#delete([id]));
    item.append(check, link, remove);
    item.addEventListener("focusin", () => this.#activate(id));
    return { element: item, link, check, remove, name, facts, thumb, shows: "", stop: new AbortController() };
  }

  #fill(row: Row, { id, job }: Entry, index: number): void {
    const { seed = 0n, width = 1, height = 1, strength } = job.spec ?? {};
    row.element.style.top = `${index * ROW}px`;
    row.element.setAttribute("aria-setsize", String(this.#entries.length));
    row.element.setAttribute("aria-posinset", String(index + 1));
    const current = id === this.current();
    if (current) row.link.setAttribute("aria-current", "true");
    else row.link.removeAttribute("aria-current");
    row.check.checked = this.#selected.has(id);
    row.element.classList.toggle("selected", row.check.checked);
    for (const part of [row.link, row.check, row.remove]) part.tabIndex = id === this.#active ? 0 : -1;
    row.name.textContent = `Seed ${seed}`;
    if (isEdit(job.spec)) row.name.append(createElement("i", `edited ${strength?.toFixed(2) ?? ""}`, "badge"));
    const text = `${width} × ${height} · ${stateOf(job)}`;
    if (row.facts.textContent !== text) row.facts.textContent = text;
  }

  #fetchThumbs(): void {
    for (const { id, job } of this.#entries) {
      const row = this.#rows.get(id);
      const shows = [job.state, job.stepsDone, job.tilesDone].join();
      if (!row || row.shows === shows || row.stop.signal.aborted) continue;
      row.shows = shows;
      const { width = 1, height = 1 } = job.spec ?? {};
      const last = Math.ceil(Math.log2(Math.max(width, height)));
      void showThumb(row, fileUrl(id, `image_files/${Math.min(8, last)}/0_0.png`));
    }
  }

  /** Moves the place that Tab reaches. */
  #activate(id: string): void {
    this.#active = id;
    for (const [other, { link, check, remove }] of this.#rows) {
      for (const part of [link, check, remove]) part.tabIndex = other === id ? 0 : -1;
    }
  }

  #key(event: KeyboardEvent): void {
    const index = this.#entries.findIndex(({ id }) => id === this.#active);
    const page = Math.max(Math.floor(scroll.clientHeight / ROW) - 1, 1);
    const moves: Record<string, number> = {
      ArrowUp: index - 1, ArrowDown: index + 1, PageUp: index - page, PageDown: index + page,
      Home: 0, End: this.#entries.length - 1,
    };
    const to = moves[event.key];
    if (to !== undefined) {
      event.preventDefault();
      const id = this.#focus(to);
      if (event.shiftKey && id) this.#select(id, true, true);
    } else if (event.key === " " && (event.target as HTMLElement).matches("a")) {
      event.preventDefault();
      this.#select(this.#active, !this.#selected.has(this.#active), event.shiftKey);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      for (const { id } of this.#entries) this.#selected.add(id);
      this.#draw();
    } else if (event.key === "Delete") {
      event.preventDefault();
      const button = this.#selected.size ? deleteButton : this.#rows.get(this.#active)?.remove;
      button?.focus();
      button?.click();
    }
  }

  /** Moves the focus to a row; returns its id. */
  #focus(index: number): string | null {
    const entry = this.#entries[Math.min(Math.max(index, 0), this.#entries.length - 1)];
    if (!entry) return null;
    const top = this.#entries.indexOf(entry) * ROW;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    if (top + ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + ROW - scroll.clientHeight;
    this.#active = entry.id;
    this.#draw();
    this.#rows.get(entry.id)?.link.focus({ preventScroll: true });
    return entry.id;
  }

  /** Selects a row or not. `range`: also those between it and the one before. */
  #select(id: string, on: boolean, range: boolean): void {
    const at = (wanted: string) => this.#entries.findIndex((entry) => entry.id === wanted);
    const [from, to] = [at(this.#anchor), at(id)];
    const ids = range && from >= 0 ? this.#entries.slice(Math.min(from, to), Math.max(from, to) + 1).map((entry) => entry.id) : [id];
    for (const each of ids) {
      if (on || range) this.#selected.add(each);
      else this.#selected.delete(each);
    }
    if (!range) this.#anchor = id;
    this.#draw();
  }

  #chosen(): Entry[] {
    return this.#pictures.entries.filter(({ id }) => this.#selected.has(id));
  }

  #showSelection(): void {
    const entries = this.#selected.size ? this.#chosen() : [];
    chosen.hidden = !entries.length;
    list.classList.toggle("selecting", entries.length > 0);
    if (!entries.length) return;
    element("chosen-count").textContent = `${new Intl.NumberFormat("en").format(entries.length)} selected`;
    const [a, b] = entries;
    compareButton.hidden = entries.length !== 2;
    const done = entries.every(({ job }) => job.state === JobState.FINISHED);
    compareButton.disabled = !(a && b && done && comparable(a.job, b.job));
    compareButton.title = compareButton.disabled ? "Two finished pictures of one shape can be compared" : "";
    downloadButton.disabled = !entries.some(({ job }) => job.state === JobState.FINISHED);
  }

  async #delete(ids: string[]): Promise<void> {
    const index = this.#entries.findIndex(({ id }) => id === ids[0]);
    const focused = element("jobs").contains(document.activeElement);
    // Closed before its pixels are gone, so that none of its tiles is asked for in vain.
    if (ids.includes(this.current() ?? "")) {
      const closed = new Promise((resolve) => window.addEventListener("hashchange", resolve, { once: true }));
      location.hash = "";
      await closed;
    }
    for (const id of ids) this.#rows.get(id)?.stop.abort();
    try {
      for (const id of ids) {
        await jobs.deleteJob({ name: `jobs/${id}` });
        this.#pictures.remove(id);
        this.#selected.delete(id);
      }
    } catch (error) {
      report(error);
    }
    this.#update();
    if (focused && this.#focus(index) === null) search.focus();
  }
}

/** State and progress in words. */
function stateOf(job: Job): string {
  switch (job.state) {
    case JobState.DENOISING:
      return `${STATES[job.state]} ${job.stepsDone} / ${job.spec?.steps ?? 1}`;
    case JobState.DECODING:
      return `${STATES[job.state]} ${job.tilesDone} / ${job.tileColumns * job.tileRows}`;
    default:
      return STATES[job.state];
  }
}

/** Shows a thumbnail once it is there, so that the one before does not vanish. */
async function showThumb(row: Row, source: string): Promise<void> {
  const next = createElement("img", "", "thumb");
  next.alt = "";
  try {
    const answer = await fetchFile(source, { signal: row.stop.signal });
    if (!answer.ok) return;
    next.src = URL.createObjectURL(await answer.blob());
    await next.decode();
  } catch {
    return;
  } finally {
    URL.revokeObjectURL(next.src);
  }
  row.thumb.replaceWith(next);
  row.thumb = next;
}
