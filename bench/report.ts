/** What a benchmark prints: a figure, what it is measured against, and whether the promise holds. @module */

export interface Row {
  readonly name: string;
  readonly value: string;
  /** What it is compared with, or "". */
  readonly against: string;
  /** The ratio, or null when there is nothing to compare with. */
  readonly ratio: number | null;
  /** The promise: "at least 0.25 of C". */
  readonly limit: string;
  /** Null: no promise. */
  readonly holds: boolean | null;
}

/** Prints a section as an aligned table. @returns whether all promises hold */
export function printSection(title: string, rows: readonly Row[]): boolean {
  console.log(`\n${title}`);
  const cells = rows.map((row) => [
    row.name,
    row.value,
    row.against,
    row.ratio === null ? "" : row.ratio.toFixed(2),
    row.limit === "" ? "" : `${row.limit}: ${row.holds ? "holds" : "MISSED"}`,
  ]);
  const widths = [0, 1, 2, 3].map((column) => Math.max(...cells.map((row) => row[column].length)));
  for (const row of cells)
    console.log(
      `  ${row.map((cell, i) => (i < 4 ? cell.padEnd(widths[i]) : cell)).join("  ")}`.trimEnd(),
    );
  return rows.every((row) => row.holds !== false);
}
