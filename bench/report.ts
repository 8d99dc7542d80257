/** What a benchmark prints: a figure, what it is measured against, and whether the promise holds. @module */

export interface Row {
  readonly name: string;
  readonly value: string;
  /** What it is compared with, or ""; a column for each. */
  readonly against: string | readonly string[];
  /** The ratio, or null when there is nothing to compare with. */
  readonly ratio: number | null;
  /** The promise: "at least 0.25 of C". */
  readonly limit: string;
  /** Null: no promise. */
  readonly holds: boolean | null;
  /** What it consists of: a line below. */
  readonly details?: string;
}

/** Prints a section as an aligned table. @returns whether all promises hold */
export function printSection(title: string, rows: readonly Row[]): boolean {
  console.log(`\n${title}`);
  const cells = rows.map((row) => [
    row.name,
    row.value,
    ...[row.against].flat(),
    row.ratio === null ? "" : row.ratio.toFixed(2),
    row.limit === "" ? "" : `${row.limit}: ${row.holds ? "holds" : "MISSED"}`,
  ]);
  const last = cells[0].length - 1;
  const widths = cells[0].map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  for (const [i, row] of cells.entries()) {
    const line = row.map((cell, column) => (column < last ? cell.padEnd(widths[column]) : cell));
    console.log(`  ${line.join("  ")}`.trimEnd());
    const { details } = rows[i];
    if (details !== undefined) console.log(`      ${details}`);
  }
  return rows.every((row) => row.holds !== false);
}
