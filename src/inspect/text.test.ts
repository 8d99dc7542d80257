import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { COLOURED, quoteText, renderLines } from "./text.ts";

describe("renderLines()", () => {
  it("keeps lines within 100 columns, colours not counted, and children below", () => {
    const text = Array.from({ length: 40 }, (_, i) => COLOURED.strong(`word${i}`)).join(" ");
    const lines = renderLines([{ text, children: [{ text: "child" }] }, { text: "next" }]);
    const plain = lines.map((line) =>
      line.replaceAll("\u001b[1m", "").replaceAll("\u001b[22m", ""),
    );
    assert.ok(
      plain.every((line) => line.length <= 100),
      plain.join("\n"),
    );
    assert.equal(plain.slice(0, -2).join(" ").split(/\s+/).length, 40);
    assert.deepEqual(plain.slice(-2), ["  child", "next"]);
  });
});

describe("quoteText()", () => {
  it("lets no control character of an image reach a terminal", () => {
    assert.equal(quoteText('vm"0\u001b[2J\u009b1m\u202e'), '"vm\\"0\\u001b[2J\\u009b1m\\u202e"');
  });
});
