/**
 * A kernel for tests of the machine alone: it marks memory, hands some of it over, and checks what it finds.
 *
 * It is no part of Holdfast's kernel: no allocator, no IOMMU driver, one NIC on bus 0, fixed addresses. What a real
 * kernel proves about itself must not depend on the machine's own tests, and the other way round.
 * Command line: "updates=N" kexecs N times, then powers off with the number of problems found; "nic=DEVICE" receives
 * frames by that function of segment 0; "then=panic|return|hang" instead of the first kexec, "then=load-missing" before it.
 * @module
 */
import * as nic from "../../abi/e1000e.ts";
import { encodeKhoFdt, KHO_SCRATCH } from "../../abi/kho.ts";
import { encodeRadixKey, radixBitmapIndex, radixTableIndex } from "../../abi/kho-radix.ts";
import * as pci from "../../abi/pci.ts";
import { testFrameSequence, verifyTestFrame } from "../../abi/test-frame.ts";
import { isKernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import type { BootParameters, KhoBootParameters, Machine } from "../machine.ts";

/** Where it puts things. */
export const MARKER = {
  scratch: 8 * MIB,
  scratchBytes: 4 * MIB,
  fdt: 16 * MIB,
  scratchArray: 16 * MIB + PAGE_SIZE,
  nodes: 17 * MIB,
  /** A preserved page: state, then marks. */
  kept: 20 * MIB,
  /** A preserved block of order 3: receive descriptors. */
  ring: 22 * MIB,
  /** A preserved block of order 10: receive buffers. */
  buffers: 24 * MIB,
  /** All that it hands over: FDT, scratch array, 15 nodes, a page, 8 pages, 1024 pages, scratch. */
  keptBytes: (1 + 1 + 15 + 1 + 8 + 1024) * PAGE_SIZE + 4 * MIB,
  /** Marked and not preserved. */
  lost: 32 * MIB,
  mark: 0x4d41524b,
} as const;

/** Enough for the second that the threads of a busy test machine may take to load an image. */
const DESCRIPTORS = 2048;
const BUFFER_BYTES = 2048;
const VECTOR = 0x41;
const RUN_NS = 3e6;

/** Words of the state at MARKER.kept. */
const BOOTS = MARKER.kept;
const NEXT_DESCRIPTOR = MARKER.kept + 4;
const NEXT_SEQUENCE = MARKER.kept + 8;
const FRAMES = MARKER.kept + 12;
const PROBLEMS = MARKER.kept + 16;
const MARKS = MARKER.kept + 1024;

export function start(machine: Machine, parameters: BootParameters): never {
  const { memory, serial } = machine;
  const options = new Map(parameters.commandLine.split(" ").map((word) => split(word)));
  const updates = Number(options.get("updates") ?? 0);
  const device = options.get("nic");
  const registers = device === undefined ? null : new NicRegisters(machine, Number(device));

  if (parameters.kho === null) {
    mark(machine);
    handOver(machine);
    registers?.coldStart();
  } else {
    const problem = findProblem(machine, parameters.kho);
    if (problem !== "") memory.store32(PROBLEMS, memory.load32(PROBLEMS) + 1);
    serial.writeLine(`boot ${memory.load32(BOOTS)}: ${problem || "as handed over"}`);
    memory.store32(MARKER.lost, MARKER.mark);
    memory.fill(MARKER.lost, PAGE_SIZE, 0x77);
  }

  machine.kexec.load(machine.kexec.installed[0]);
  if (registers === null) machine.interrupts.wait(RUN_NS);
  else registers.receive(machine.clock.nowNs() + RUN_NS);

  const then = options.get("then");
  if (then === "panic") throw new TypeError("marker kernel panics as told");
  // What a kernel must not do, so the types have to be told that it does.
  if (then === "return") return undefined as never;
  if (then === "hang") {
    serial.writeLine("hangs");
    for (;;) machine.interrupts.wait(1e9);
  }

  if (then === "listen") serial.writeLine(`heard ${hear(machine)}`);

  const boots = memory.load32(BOOTS);
  if (boots === updates) {
    serial.writeLine(`${memory.load32(FRAMES)} frames`);
    machine.powerOff(memory.load32(PROBLEMS));
  }
  memory.store32(BOOTS, boots + 1);
  if (then === "load-missing") loadMissing(machine);
  return machine.kexec.execute({
    commandLine: parameters.commandLine,
    kho: handedOver(memory.load32(MARKER.fdt + PAGE_SIZE - 4)),
  });
}

function hear({ serial, interrupts }: Machine): string {
  for (;;) {
    const line = serial.readLine();
    if (line !== null) return line;
    interrupts.wait(1e6);
  }
}

function split(word: string): [string, string] {
  const at = word.indexOf("=");
  return at < 0 ? [word, ""] : [word.slice(0, at), word.slice(at + 1)];
}

function mark({ memory }: Machine): void {
  for (let i = 0; i < 3072; i += 4) memory.store32(MARKS + i, MARKER.mark + i);
  memory.store32(MARKER.scratch + MIB, MARKER.mark);
  memory.fill(MARKER.lost, PAGE_SIZE, 0x77);
}

function findProblem({ memory }: Machine, kho: KhoBootParameters): string {
  if (kho.fdtAddress !== MARKER.fdt) return "another FDT";
  for (let i = 0; i < 3072; i += 4)
    if (memory.load32(MARKS + i) !== (MARKER.mark + i) >>> 0) return `kept page, byte ${i}`;
  if (memory.load32(MARKER.scratch + MIB) !== MARKER.mark) return "scratch changed";
  let left = 0;
  for (let i = 0; i < PAGE_SIZE; i++) if (memory.load8(MARKER.lost + i) === 0x77) left++;
  return left > 100 ? `${left} bytes of the lost page are left` : "";
}

/** Writes FDT, tree and scratch array. */
function handOver({ memory }: Machine): void {
  let nextNode = MARKER.nodes;
  const newNode = (): number => {
    const node = nextNode;
    nextNode += PAGE_SIZE;
    memory.fill(node, PAGE_SIZE, 0);
    return node;
  };
  const root = newNode();
  for (const [pa, order] of [
    [MARKER.kept, 0],
    [MARKER.ring, 3],
    [MARKER.buffers, 10],
  ]) {
    const key = encodeRadixKey(pa, order);
    let node = root;
    for (let level = 5; level > 0; level--) {
      const entry = node + 8 * radixTableIndex(key, level);
      if (memory.load64(entry) === 0) memory.store64(entry, newNode());
      node = memory.load64(entry);
    }
    const bit = radixBitmapIndex(key);
    const word = node + 4 * (bit >>> 5);
    memory.store32(word, (memory.load32(word) | (1 << (bit & 31))) >>> 0);
  }
  const fdt = encodeKhoFdt({ memoryMapPa: root, subtrees: [] });
  memory.write(MARKER.fdt, fdt);
  memory.store32(MARKER.fdt + PAGE_SIZE - 4, fdt.length);
  KHO_SCRATCH.write(memory, MARKER.scratchArray, {
    addr: MARKER.scratch,
    size: MARKER.scratchBytes,
  });
}

function handedOver(fdtSizeBytes: number): KhoBootParameters {
  return {
    fdtAddress: MARKER.fdt,
    fdtSizeBytes,
    scratchAddress: MARKER.scratchArray,
    scratchSizeBytes: KHO_SCRATCH.sizeBytes,
  };
}

function loadMissing({ kexec, serial }: Machine): void {
  const image = { ...kexec.installed[0], name: "missing", entry: "file:///no/such/kernel.js" };
  try {
    kexec.load(image);
    serial.writeLine("loaded a missing image");
  } catch (error) {
    if (!isKernelError(error)) throw error;
    serial.writeLine(error.message);
  }
}

/** Drives one NIC of segment 0, bus 0, without translation. Its ring is handed over and never set up again. */
class NicRegisters {
  readonly #machine: Machine;
  readonly #config: number;
  readonly #bar: number;

  constructor(machine: Machine, device: number) {
    this.#machine = machine;
    const { ecams, mmioWindows } = machine.firmware;
    this.#config = ecams[0].base + pci.ecamOffset(ecams[0].startBus, device << 3);
    this.#bar = mmioWindows[0].start;
  }

  coldStart(): void {
    const { mmio, memory } = this.#machine;
    mmio.write(this.#config + pci.PCI_BASE_ADDRESS_0, 4, this.#bar);
    const command = pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_MASTER;
    mmio.write(this.#config + pci.PCI_COMMAND, 2, command);
    let capability = mmio.read(this.#config + pci.PCI_CAPABILITY_LIST, 1);
    while (mmio.read(this.#config + capability, 1) !== pci.PCI_CAP_ID_MSI)
      capability = mmio.read(this.#config + capability + 1, 1);
    const msi = this.#config + capability;
    mmio.write(msi + pci.PCI_MSI_ADDRESS_LO, 4, pci.MSI_ADDRESS_BASE);
    mmio.write(msi + pci.PCI_MSI_ADDRESS_HI, 4, 0);
    mmio.write(msi + pci.PCI_MSI_DATA_64, 2, VECTOR);
    mmio.write(msi + pci.PCI_MSI_FLAGS, 2, pci.PCI_MSI_FLAGS_ENABLE);
    for (let i = 0; i < DESCRIPTORS; i++) {
      memory.store64(this.#descriptor(i), MARKER.buffers + i * BUFFER_BYTES);
      memory.store64(this.#descriptor(i) + 8, 0);
    }
    this.#write(nic.E1000_RDBAL, MARKER.ring);
    this.#write(nic.E1000_RDBAH, 0);
    this.#write(nic.E1000_RDLEN, DESCRIPTORS * nic.E1000_DESCRIPTOR_BYTES);
    this.#write(nic.E1000_RDH, 0);
    this.#write(nic.E1000_RDT, DESCRIPTORS - 1);
    this.#write(nic.E1000_IMS, nic.E1000_ICR_RXT0);
    this.#write(nic.E1000_RCTL, nic.E1000_RCTL_EN | nic.E1000_RCTL_UPE | nic.E1000_RCTL_SECRC);
    this.#write(nic.E1000_CTRL, nic.E1000_CTRL_FD | nic.E1000_CTRL_SLU);
  }

  receive(untilNs: number): void {
    const { clock, interrupts } = this.#machine;
    for (;;) {
      while (this.#receiveOne());
      const leftNs = untilNs - clock.nowNs();
      if (leftNs <= 0) return;
      interrupts.wait(leftNs);
      // Acknowledge at the NIC too, or it sends no more.
      if (interrupts.take(VECTOR)) this.#machine.mmio.read(this.#bar + nic.E1000_ICR, 4);
    }
  }

  #receiveOne(): boolean {
    const { memory } = this.#machine;
    const index = memory.load32(NEXT_DESCRIPTOR);
    const at = this.#descriptor(index);
    const status = memory.load32(at + nic.E1000_RXD_STATUS) & 0xff;
    if ((status & nic.E1000_RXD_STAT_DD) === 0) return false;
    const length = memory.load16(at + nic.E1000_RXD_LENGTH);
    const frame = new Uint8Array(length);
    memory.read(memory.load64(at), frame);
    const defect = verifyTestFrame(frame, 0, length, 0);
    const sequence = testFrameSequence(frame, 0);
    if (defect !== "" || sequence !== memory.load32(NEXT_SEQUENCE)) {
      const problems = memory.load32(PROBLEMS) + 1;
      memory.store32(PROBLEMS, problems);
      if (problems < 10)
        this.#machine.serial.writeLine(
          `frame ${sequence} at ${index}: ${defect || "out of order"}`,
        );
    }
    memory.store32(NEXT_SEQUENCE, sequence + 1);
    memory.store32(FRAMES, memory.load32(FRAMES) + 1);
    memory.store64(at + 8, 0);
    memory.store32(NEXT_DESCRIPTOR, (index + 1) % DESCRIPTORS);
    this.#write(nic.E1000_RDT, index);
    return true;
  }

  #descriptor(index: number): number {
    return MARKER.ring + index * nic.E1000_DESCRIPTOR_BYTES;
  }

  #write(offset: number, value: number): void {
    this.#machine.mmio.write(this.#bar + offset, 4, value);
  }
}
