import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { RunningHash } from "./event-log.ts";

function digest(action: (hash: RunningHash) => void): string {
  const hash = new RunningHash();
  action(hash);
  return hash.digest();
}

describe("RunningHash", () => {
  it("is equal for equal sequences and differs when any word, or the order, does", () => {
    const words = fc.array(fc.integer(), { minLength: 2, maxLength: 20 });
    fc.assert(
      fc.property(words, fc.nat(), fc.integer({ min: 1 }), (sequence, at, change) => {
        const of = (list: number[]) =>
          digest((hash) => {
            for (const word of list) hash.mix(word);
          });
        const changed = [...sequence];
        changed[at % changed.length] ^= change;
        assert.equal(of(sequence), of([...sequence]));
        assert.notEqual(of(changed), of(sequence));
        const [first, second, ...rest] = sequence;
        if (first !== second) assert.notEqual(of([second, first, ...rest]), of(sequence));
      }),
    );
  });

  it("counts every byte, also those after the last whole word, and the length", () => {
    const bytes = Uint8Array.from({ length: 11 }, (_, i) => i);
    const whole = digest((hash) => hash.mixBytes(bytes));
    for (let i = 0; i < bytes.length; i++) {
      const other = bytes.slice();
      other[i] ^= 0x80;
      assert.notEqual(
        digest((hash) => hash.mixBytes(other)),
        whole,
      );
    }
    const zeros = (n: number) => digest((hash) => hash.mixBytes(new Uint8Array(n)));
    assert.notEqual(zeros(4), zeros(8));
  });

  it("tells numbers apart beyond 32 bits", () => {
    const of = (value: number) => digest((hash) => hash.mixNumber(value));
    assert.notEqual(of(1), of(2 ** 32 + 1));
  });
});
