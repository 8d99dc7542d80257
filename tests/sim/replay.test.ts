import assert from "node:assert/strict";
import { test } from "node:test";
import { simulate } from "../support/simulated-host.ts";

function run(seed: number) {
  const { machine, lines, guests } = simulate({ seed, updates: 2 });
  return {
    log: machine.logHash(),
    memory: machine.memoryHash(),
    nowNs: machine.nowNs,
    stores: machine.stores,
    lines,
    guests,
  };
}

test("a run replays byte for byte from its seed, and another seed is another run", () => {
  const first = run(21);
  assert.deepEqual(run(21), first);
  const other = run(22);
  assert.notEqual(other.log, first.log);
  assert.notEqual(other.memory, first.memory);
  assert.notEqual(other.nowNs, first.nowNs);
});
