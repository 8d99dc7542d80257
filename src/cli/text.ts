/** Lines for people that several commands print. @module */

const NS_PER_MS = 1e6;

/** How long something took. */
export function phaseLine(name: string, durationNs: number, remark = ""): string {
  const ms = (durationNs / NS_PER_MS).toFixed(2).padStart(9);
  return `  ${name.padEnd(9)} ${ms} ms  ${remark}`.trimEnd();
}

/**
 * Rows as lines, each column as wide as its widest cell.
 * @param rows - one or more, all of the same length
 * @param isRight - whether a column's cells end under one another instead of beginning there
 */
export function columns(
  rows: readonly (readonly string[])[],
  isRight: (column: number) => boolean = () => false,
): string[] {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows.map((row) =>
    row
      .map((cell, column) =>
        isRight(column) ? cell.padStart(widths[column]) : cell.padEnd(widths[column]),
      )
      .join("  ")
      .trimEnd(),
  );
}
