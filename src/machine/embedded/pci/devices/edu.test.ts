import assert from "node:assert/strict";
import { test } from "node:test";
import * as reg from "../../../../abi/edu.ts";
import type { DmaPort } from "../../hardware.ts";
import { EDU_BURST_BYTES, Edu, type EduOptions, eduFactory } from "./edu.ts";

/** Memory of 64 KiB from address 0 on, and a log of what the device did. */
class Bus implements DmaPort {
  readonly memory = new Uint8Array(65536);
  readonly log: string[] = [];
  refuse = false;

  read(address: number, target: Uint8Array): boolean {
    this.log.push(`read ${address} ${target.length}`);
    if (this.refuse || address + target.length > this.memory.length) {
      target.fill(0xff);
      return false;
    }
    target.set(this.memory.subarray(address, address + target.length));
    return true;
  }

  write(address: number, bytes: Uint8Array): boolean {
    this.log.push(`write ${address} ${bytes.length}`);
    if (this.refuse || address + bytes.length > this.memory.length) return false;
    this.memory.set(bytes, address);
    return true;
  }

  signalMsi(): void {
    this.log.push("msi");
  }
}

function make(options: EduOptions = { dmaLatencyNs: 1000 }) {
  const bus = new Bus();
  const edu = eduFactory(options)(bus);
  edu.reset();
  return {
    bus,
    edu,
    get: (offset: number) => edu.barRead(0, offset, 4),
    set: (offset: number, value: number) => edu.barWrite(0, offset, 4, value),
    transfer(source: number, destination: number, count: number, command: number) {
      edu.barWrite(0, reg.EDU_DMA_SRC, 4, source);
      edu.barWrite(0, reg.EDU_DMA_DST, 4, destination);
      edu.barWrite(0, reg.EDU_DMA_COUNT, 4, count);
      edu.barWrite(0, reg.EDU_DMA_CMD, 4, command | reg.EDU_DMA_RUN);
    },
    run(nowNs: number) {
      while (edu.step(nowNs));
    },
  };
}

test("edu is QEMU's device with one BAR of 1 MiB", () => {
  const { edu, get, set } = make();
  assert.equal(edu.identity.vendorId, 0x1234);
  assert.equal(edu.identity.deviceId, 0x11e8);
  assert.deepEqual(edu.bars, [
    { index: 0, sizeBytes: 2 ** 20, kind: "memory32", isPrefetchable: false },
  ]);
  assert.equal(get(reg.EDU_ID), 0x010000ed);
  set(reg.EDU_ID, 0);
  assert.equal(get(reg.EDU_ID), 0x010000ed);
  set(reg.EDU_LIVENESS, 0x1234_5678);
  assert.equal(get(reg.EDU_LIVENESS), 0xedcb_a987);
});

test("accesses that are not 32 bits wide, and offsets without a register, give ones and do nothing", () => {
  const { edu, get, set } = make();
  edu.barWrite(0, reg.EDU_LIVENESS, 2, 1);
  assert.equal(get(reg.EDU_LIVENESS), 0);
  assert.equal(edu.barRead(0, reg.EDU_ID, 1), 0xff);
  assert.equal(edu.barRead(0, reg.EDU_ID, 2), 0xffff);
  for (const offset of [0x0c, reg.EDU_IRQ_RAISE, reg.EDU_DMA_SRC + 4, reg.EDU_BUFFER])
    assert.equal(get(offset), 0xffffffff);
  set(reg.EDU_DMA_SRC + 4, 1);
  set(reg.EDU_BUFFER, 1);
  assert.equal(get(reg.EDU_DMA_SRC), 0);
});

test("the factorial is computed in a step, modulo 2^32, with an interrupt if asked for", () => {
  const { bus, edu, get, set } = make();
  assert.equal(edu.nextDueNs(), Number.POSITIVE_INFINITY);
  for (const [n, expected] of [
    [0, 1],
    [1, 1],
    [10, 3628800],
    [13, 1932053504],
    [33, 2147483648],
    [34, 0],
    [0xffffffff, 0],
  ]) {
    set(reg.EDU_FACTORIAL, n);
    assert.equal(get(reg.EDU_STATUS), reg.EDU_STATUS_COMPUTING);
    assert.equal(edu.nextDueNs(), 0);
    // While it computes nothing else can be asked.
    set(reg.EDU_FACTORIAL, 5);
    edu.step(0);
    assert.equal(get(reg.EDU_FACTORIAL), expected);
    assert.equal(get(reg.EDU_STATUS), 0);
  }
  assert.deepEqual(bus.log, []);
  set(reg.EDU_STATUS, 0xff);
  assert.equal(get(reg.EDU_STATUS), reg.EDU_STATUS_IRQFACT);
  set(reg.EDU_FACTORIAL, 3);
  edu.step(0);
  assert.deepEqual(bus.log, ["msi"]);
  assert.equal(get(reg.EDU_IRQ_STATUS), reg.EDU_IRQ_FACTORIAL);
});

test("the interrupt is raised with its reasons and acknowledged bit by bit", () => {
  const { bus, get, set } = make();
  set(reg.EDU_IRQ_RAISE, 0);
  assert.deepEqual(bus.log, []);
  set(reg.EDU_IRQ_RAISE, 0x80000001);
  assert.equal(get(reg.EDU_IRQ_STATUS), 0x80000001);
  set(reg.EDU_IRQ_ACK, 1);
  assert.equal(get(reg.EDU_IRQ_STATUS), 0x80000000);
  set(reg.EDU_IRQ_RAISE, 2);
  assert.deepEqual(bus.log, ["msi", "msi"]);
  set(reg.EDU_IRQ_ACK, 0xffffffff);
  assert.equal(get(reg.EDU_IRQ_STATUS), 0);
});

test("DMA moves memory into the buffer and back, after its latency, in bursts, data before interrupt", () => {
  const { bus, edu, get, set, transfer, run } = make();
  for (let i = 0; i < 1000; i++) bus.memory[0x1000 + i] = i % 251;
  transfer(0x1000, reg.EDU_BUFFER + 3, 1000, 0);
  assert.equal(edu.nextDueNs(), 0);
  run(5000);
  assert.equal(edu.nextDueNs(), 6000);
  run(5999);
  assert.deepEqual(bus.log, []);
  assert.equal(edu.step(6000), true);
  assert.deepEqual(bus.log, [`read ${0x1000} ${EDU_BURST_BYTES}`]);
  assert.equal(get(reg.EDU_DMA_CMD), reg.EDU_DMA_RUN);
  run(6000);
  assert.equal(get(reg.EDU_DMA_CMD), 0);
  assert.equal(edu.nextDueNs(), Number.POSITIVE_INFINITY);
  assert.equal(bus.log.length, 4);

  transfer(reg.EDU_BUFFER + 3, 0x8000, 1000, reg.EDU_DMA_TO_MEMORY | reg.EDU_DMA_IRQ);
  run(7000);
  assert.equal(bus.log.length, 4);
  run(8000);
  assert.deepEqual(
    bus.memory.subarray(0x8000, 0x8000 + 1001),
    bus.memory.subarray(0x1000, 0x1000 + 1001),
  );
  assert.equal(bus.log.at(-1), "msi");
  assert.equal(bus.log.filter((entry) => entry === "msi").length, 1);
  assert.equal(get(reg.EDU_IRQ_STATUS), reg.EDU_IRQ_DMA);
  assert.equal(get(reg.EDU_DMA_CMD), reg.EDU_DMA_TO_MEMORY | reg.EDU_DMA_IRQ);
  // Without RUN the command register does not change.
  set(reg.EDU_DMA_CMD, 0);
  assert.equal(get(reg.EDU_DMA_CMD), reg.EDU_DMA_TO_MEMORY | reg.EDU_DMA_IRQ);
});

test("the DMA registers cannot be written during a transfer", () => {
  const { bus, get, set, transfer, run } = make();
  transfer(0x1000, reg.EDU_BUFFER, 512, 0);
  run(0);
  set(reg.EDU_DMA_SRC, 0x2000);
  set(reg.EDU_DMA_DST, 0);
  set(reg.EDU_DMA_COUNT, 1);
  set(reg.EDU_DMA_CMD, reg.EDU_DMA_RUN | reg.EDU_DMA_TO_MEMORY);
  run(1000);
  assert.deepEqual(bus.log, [`read ${0x1000} 256`, `read ${0x1100} 256`]);
  assert.equal(get(reg.EDU_DMA_SRC), 0x1000);
});

test("DMA addresses lose the bits above the mask", () => {
  const { bus, transfer, run } = make({ dmaLatencyNs: 0 });
  transfer(0xf000_0200, reg.EDU_BUFFER, 4, 0);
  run(0);
  assert.deepEqual(bus.log, [`read ${0x200} 4`]);
  const wide = make({ dmaLatencyNs: 0, dmaMask: 0xffffffff });
  wide.transfer(0xf000_0200, reg.EDU_BUFFER, 4, 0);
  wide.run(0);
  assert.deepEqual(wide.bus.log, [`read ${0xf000_0200} 4`]);
});

test("a transfer that does not fit the buffer, or of nothing, moves nothing and ends", () => {
  for (const [source, destination, count, command] of [
    [0, reg.EDU_BUFFER, 4097, 0],
    [0, reg.EDU_BUFFER + 4096, 1, 0],
    [0, reg.EDU_BUFFER - 1, 2, 0],
    [0, 0xffffffff, 0xffffffff, 0],
    [reg.EDU_BUFFER + 1, 0, 4096, reg.EDU_DMA_TO_MEMORY],
    [0, reg.EDU_BUFFER, 0, 0],
  ]) {
    const { bus, get, transfer, run } = make({ dmaLatencyNs: 0 });
    transfer(source, destination, count, command | reg.EDU_DMA_IRQ);
    run(0);
    assert.deepEqual(bus.log, ["msi"]);
    assert.equal(get(reg.EDU_DMA_CMD) & reg.EDU_DMA_RUN, 0);
  }
});

test("what the bus refuses to read arrives as ones, and the transfer ends all the same", () => {
  const { bus, get, transfer, run } = make({ dmaLatencyNs: 0 });
  bus.refuse = true;
  transfer(0x1000, reg.EDU_BUFFER, 300, 0);
  run(0);
  assert.equal(get(reg.EDU_DMA_CMD), 0);
  bus.refuse = false;
  transfer(reg.EDU_BUFFER, 0x1000, 302, reg.EDU_DMA_TO_MEMORY);
  run(0);
  assert.deepEqual(bus.memory.subarray(0x1000, 0x1000 + 300), new Uint8Array(300).fill(0xff));
  assert.equal(bus.memory[0x1000 + 300], 0);
});

test("reset() drops a transfer that is under way, and everything else", () => {
  const { bus, edu, get, set, transfer } = make({ dmaLatencyNs: 0 });
  set(reg.EDU_LIVENESS, 0);
  set(reg.EDU_IRQ_RAISE, 1);
  set(reg.EDU_STATUS, reg.EDU_STATUS_IRQFACT);
  set(reg.EDU_FACTORIAL, 4);
  transfer(0x1000, reg.EDU_BUFFER, 1024, reg.EDU_DMA_IRQ);
  edu.step(0);
  const { length } = bus.log;
  edu.reset();
  assert.equal(edu.step(1e9), false);
  assert.equal(bus.log.length, length);
  for (const offset of [
    reg.EDU_LIVENESS,
    reg.EDU_FACTORIAL,
    reg.EDU_STATUS,
    reg.EDU_IRQ_STATUS,
    reg.EDU_DMA_SRC,
    reg.EDU_DMA_DST,
    reg.EDU_DMA_COUNT,
    reg.EDU_DMA_CMD,
  ])
    assert.equal(get(offset), 0);
  assert.equal(edu.nextDueNs(), Number.POSITIVE_INFINITY);
});

test("the default latency is QEMU's 100 ms", () => {
  const edu = new Edu(new Bus());
  edu.barWrite(0, reg.EDU_DMA_CMD, 4, reg.EDU_DMA_RUN);
  edu.step(7);
  assert.equal(edu.nextDueNs(), 100_000_007);
});
