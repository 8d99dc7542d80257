import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { createInterruptState, InterruptController } from "./interrupts.ts";

describe("InterruptController", () => {
  it("take() finds each raised vector once, and no other", () => {
    const interrupts = new InterruptController(createInterruptState());
    for (const vector of [0, 31, 32, 255]) interrupts.raise(vector);
    const taken = [];
    for (let vector = 0; vector < 256; vector++) if (interrupts.take(vector)) taken.push(vector);
    assert.deepEqual(taken, [0, 31, 32, 255]);
    assert.equal(interrupts.anyPending(), false);
    assert.equal(interrupts.take(31), false);
  });

  it("keeps a vector pending once however often it is raised", () => {
    const interrupts = new InterruptController(createInterruptState());
    interrupts.raise(7);
    interrupts.raise(7);
    assert.equal(interrupts.take(7), true);
    assert.equal(interrupts.take(7), false);
  });

  it("shows what is pending to whoever shares the state later, as the next kernel does", () => {
    const state = createInterruptState();
    new InterruptController(state).raise(100);
    assert.equal(new InterruptController(state).take(100), true);
  });

  it("wait() returns at once when a vector is pending, and after the timeout when none is", () => {
    const interrupts = new InterruptController(createInterruptState());
    const start = process.hrtime.bigint();
    interrupts.wait(20e6);
    assert.ok(process.hrtime.bigint() - start >= 19_000_000n);
    interrupts.raise(1);
    // Would hang the test if it slept.
    interrupts.wait(Number.POSITIVE_INFINITY);
    assert.ok(interrupts.anyPending());
  });

  it("wait() is woken by another thread's raise()", async () => {
    const state = createInterruptState();
    // A worker that waits for ever, then says what it saw; without a wake-up the test times out.
    const worker = new Worker(
      `const { workerData, parentPort } = require("node:worker_threads");
       const words = new Int32Array(workerData);
       const raises = Atomics.load(words, 8);
       parentPort.postMessage("waits");
       Atomics.wait(words, 8, raises);
       parentPort.postMessage(words[1]);`,
      { eval: true, workerData: state },
    );
    await new Promise((resolve) => worker.once("message", resolve));
    new InterruptController(state).raise(33);
    const seen = await new Promise((resolve) => worker.once("message", resolve));
    assert.equal(seen, 2);
    await worker.terminate();
  });
});
