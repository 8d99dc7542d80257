/** (f) The inspector on an image of 1 GiB with 10,000 preserved extents, found by search. @module */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../src/base/assert.ts";
import { formatBytes, MIB } from "../src/base/units.ts";
import { describe } from "../src/inspect/describe.ts";
import { readHandover } from "../src/inspect/handover.ts";
import { openImage } from "../src/inspect/image/open-image.ts";
import { saveFragmentedImage } from "../tests/support/fragmented-image.ts";
import { median, seconds } from "./measure.ts";
import type { Row } from "./report.ts";

const EXTENTS = 10_000;
const ROUNDS = 7;
const SECONDS_MAX = 2;
/** The image's cache and the lists of what is preserved: far below the image. */
const BUFFERS_MAX = 64 * MIB;

/** The first round also brings the file's holes into the page cache; the median does not. */
export function inspectRows(): Row[] {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-bench-"));
  try {
    const path = join(folder, "image");
    saveFragmentedImage(path, EXTENTS);
    const before = process.memoryUsage().arrayBuffers;
    let buffers = 0;
    const rounds = Array.from({ length: ROUNDS }, () =>
      seconds(() => {
        const image = openImage(path);
        const view = describe(readHandover(image, { fdtPa: null }));
        buffers = Math.max(buffers, process.memoryUsage().arrayBuffers - before);
        const extents = view.memfs?.[0].entries.reduce((sum, e) => sum + e.extents, 0);
        assert(extents === EXTENTS && view.problems.length === 0, "all of it was seen");
        image.close();
      }),
    );
    const promise = (name: string, value: string, of: string, ratio: number): Row => ({
      name,
      value,
      against: of,
      ratio,
      limit: "at most 1.00",
      holds: ratio <= 1,
    });
    const ms = (s: number) => `${Math.round(s * 1000)} ms`;
    const middle = median(rounds);
    return [
      {
        ...promise("first look", ms(rounds[0]), `${SECONDS_MAX} s`, rounds[0] / SECONDS_MAX),
        limit: "",
        holds: null,
      },
      promise("inspect, median", ms(middle), `${SECONDS_MAX} s`, middle / SECONDS_MAX),
      promise("buffers", formatBytes(buffers), formatBytes(BUFFERS_MAX), buffers / BUFFERS_MAX),
    ];
  } finally {
    rmSync(folder, { recursive: true });
  }
}
