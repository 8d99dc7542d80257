/**
 * Text for people: a tree of lines, at most 100 columns wide, coloured where the reader is a terminal.
 * @module
 */

/** A line and what is under it. */
export interface Line {
  readonly text: string;
  readonly children?: readonly Line[];
}

/** How parts of a line may be set off. */
export interface Style {
  /** Names of things. */
  strong(text: string): string;
  /** What matters less: addresses. */
  faint(text: string): string;
  bad(text: string): string;
  good(text: string): string;
}

export const PLAIN: Style = {
  strong: (text) => text,
  faint: (text) => text,
  bad: (text) => text,
  good: (text) => text,
};

const sgr = (on: number, off: number) => (text: string) => `\u001b[${on}m${text}\u001b[${off}m`;

export const COLOURED: Style = {
  strong: sgr(1, 22),
  faint: sgr(2, 22),
  bad: sgr(31, 39),
  good: sgr(32, 39),
};

const WIDTH = 100;
const INDENT = 2;

/** Lines with their children below them, indented; long ones go on in the next line. */
export function renderLines(lines: readonly Line[], depth = 0): string[] {
  return lines.flatMap(({ text, children = [] }) => [
    ...wrap(text, depth * INDENT),
    ...renderLines(children, depth + 1),
  ]);
}

function wrap(text: string, indent: number): string[] {
  const lines: string[] = [];
  let line = " ".repeat(indent);
  let isEmpty = true;
  for (const word of text.split(" ")) {
    if (!isEmpty && visibleLength(line) + 1 + visibleLength(word) > WIDTH) {
      lines.push(line);
      line = " ".repeat(indent + 2 * INDENT);
      isEmpty = true;
    }
    line += isEmpty ? word : ` ${word}`;
    isEmpty = false;
  }
  lines.push(line);
  return lines.map((one) => one.trimEnd());
}

function visibleLength(text: string): number {
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    // A colour's escape sequence ends with "m".
    if (text.charCodeAt(i) === 0x1b) i = text.indexOf("m", i);
    else length++;
  }
  return length;
}

/** A text from an image, safe for a terminal: what could be an escape sequence is shown as code. */
export function quoteText(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** "1 page", "2 pages". */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en-US")} ${count === 1 ? one : many}`;
}
