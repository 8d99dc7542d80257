/**
 * What the inspector says of a handover on QEMU's RAM, against what QEMU's unit does: the kernel has ended, its tables are in
 * use, and devices ask for addresses that `reach` says they have, have in part, or have not.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  E1000_DESCRIPTOR_BYTES,
  E1000_TCTL,
  E1000_TCTL_EN,
  E1000_TDBAH,
  E1000_TDBAL,
  E1000_TDH,
  E1000_TDLEN,
  E1000_TDT,
  E1000_TXD_CMD_EOP,
  E1000_TXD_CMD_IFCS,
  E1000_TXD_CMD_RS,
} from "../../src/abi/e1000e.ts";
import {
  ecamOffset,
  PCI_BASE_ADDRESS_0,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
} from "../../src/abi/pci.ts";
import { encodeTestFrame, TEST_FRAME_MIN_BYTES } from "../../src/abi/test-frame.ts";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC } from "../../src/abi/uapi/reboot.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../../src/abi/uapi/vfio.ts";
import type { FaultRecord } from "../../src/abi/vtd/faults.ts";
import { Prng } from "../../src/base/prng.ts";
import { KIB, MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { verify } from "../../src/cli/verify.ts";
import type { Host } from "../../src/host/host.ts";
import * as iommufd from "../../src/host/iommufd.ts";
import * as liveupdate from "../../src/host/liveupdate.ts";
import { MappedMemory } from "../../src/host/mapped-memory.ts";
import * as vfio from "../../src/host/vfio.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { describe as describeHandover, type HandoverView } from "../../src/inspect/describe.ts";
import { readHandover } from "../../src/inspect/handover.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import { type DeviceReach, deviceNames, reachDevice, reachPage } from "../../src/inspect/reach.ts";
import { boot } from "../../src/kernel/boot.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import type { EduConfig, MachineConfig } from "../../src/machine/embedded/config.ts";
import { Ram } from "../../src/machine/physical-memory.ts";
import { CpuInterrupts } from "../../src/machine/qemu/cpu-interrupts.ts";
import { QemuHardware } from "../../src/machine/qemu/qemu-hardware.ts";
import { FIRST_QEMU_FD } from "../../src/machine/qemu/qemu-process.ts";
import { QtestClient } from "../../src/machine/qemu/qtest.ts";
import { monotonicNs } from "../../src/machine/thread/monotonic-clock.ts";
import { EDU_ARGUMENTS, Edu, Unit } from "./devices.ts";
import { skipReason } from "./rig.ts";

const SEED = Number(process.env["SEED"] ?? 1);
const IMAGE = { name: "next", entry: "next", release: "next", restores: RESTORES };
/** By `edu`: on bus 0, preserved; on bus 0, in use and not preserved; behind a root port. */
const EDU = "0000:00:01.0";
const FORGOTTEN = "0000:00:02.0";
const EDU_BEHIND_PORT = "0000:02:00.0";
const NIC = "0000:01:00.0";

const edu = (device: number): EduConfig => ({ model: "edu", device, function: 0, rmrrBytes: 0 });
const CONFIG: MachineConfig = {
  nodeBytes: [128 * MIB],
  segments: [
    {
      drhd: { addressBits: 48, superpages: true },
      slots: [
        edu(1),
        edu(2),
        {
          model: "root-port",
          device: 4,
          function: 0,
          children: [
            {
              model: "e1000e",
              device: 0,
              function: 0,
              name: "nic0",
              framesPerSecond: 0,
              rmrrBytes: 0,
            },
          ],
        },
        { model: "root-port", device: 5, function: 0, children: [edu(0)] },
      ],
    },
  ],
  installed: [IMAGE],
};

/** What each user maps: where its own words are, then what is looked at. */
const CONTROL = 0x1000_0000;
const FILE_BYTES = 8 * MIB;
const AREAS = [
  { iova: CONTROL, offset: 0, lengthBytes: 64 * KIB, writable: true },
  { iova: 0x2000, offset: 5 * MIB + PAGE_SIZE, lengthBytes: PAGE_SIZE, writable: true },
  { iova: 64 * MIB, offset: 2 * MIB, lengthBytes: 2 * MIB, writable: true },
  { iova: 0x4000_5000, offset: 4 * MIB, lengthBytes: 3 * PAGE_SIZE, writable: false },
  // Neighbours in IOVAs, and far from each other in memory.
  { iova: 0x8000_0000, offset: 7 * MIB, lengthBytes: PAGE_SIZE, writable: true },
  { iova: 0x8000_1000, offset: 6 * MIB + 512 * KIB, lengthBytes: PAGE_SIZE, writable: true },
  { iova: 2 ** 48 - 64 * KIB, offset: 6 * MIB, lengthBytes: 64 * KIB, writable: true },
] as const;
const MSI_WINDOW = { start: 0xfee0_0000, end: 0xfef0_0000 };
const RANDOM_PAGES = 100;

/** Thrown where a kernel ends. */
const KERNEL_ENDED = new Error("the kernel has ended");

/** A process that uses one device. */
class DeviceUser {
  readonly memory: MappedMemory;

  constructor(host: Host, slot: string, session: number | null, token: bigint) {
    const file = host.open(`/mnt/guests/${slot}`, O_RDWR | O_CREAT);
    host.ftruncate(file, FILE_BYTES);
    host.fallocate(file, 0, 0, FILE_BYTES);
    this.memory = new MappedMemory(host.mmap(file, 0, FILE_BYTES));
    for (let at = 0; at < FILE_BYTES; at += 4) this.memory.set32(at, at);
    const found = listVfioDevices(host).find((device) => device.slot === slot);
    assert(found !== undefined, `a device at ${slot}`);
    const device = host.open(found.path, O_RDWR);
    const context = host.open("/dev/iommu", O_RDWR);
    const deviceId = vfio.bindIommufd(host, device, context);
    const ioasId = iommufd.ioasAlloc(host, context);
    for (const { iova, offset, lengthBytes, writable } of AREAS)
      iommufd.ioasMapFile(host, context, {
        ioasId,
        fileFd: file,
        start: offset,
        lengthBytes,
        iova,
        writable,
      });
    const hwptId = iommufd.hwptAlloc(host, context, { deviceId, ptId: ioasId });
    iommufd.hwptMarkPreserve(host, context, hwptId, 1n);
    vfio.attach(host, device, hwptId);
    const config = vfio.openRegion(host, device, VFIO_PCI_CONFIG_REGION_INDEX);
    config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    if (session === null) return;
    for (const [i, fd] of [file, context, device].entries())
      liveupdate.preserveFd(host, session, fd, token + BigInt(i));
  }

  /** 8 bytes of the file behind an IOVA, as it was mapped; null where nothing was. */
  at(iova: number): { readonly offset: number; readonly words: number[] } | null {
    const area = AREAS.find((one) => iova >= one.iova && iova < one.iova + one.lengthBytes);
    if (area === undefined) return null;
    const offset = area.offset + iova - area.iova;
    return { offset, words: [this.memory.load32(offset), this.memory.load32(offset + 4)] };
  }
}

/** QEMU after a kernel has handed over and ended. */
interface Aftermath {
  readonly hardware: QemuHardware;
  readonly qtest: QtestClient;
  readonly ram: Ram;
  readonly unit: Unit;
  readonly users: ReadonlyMap<string, DeviceUser>;
  readonly view: HandoverView;
  readonly names: readonly string[];
  readonly reach: (name: string) => DeviceReach;
  readonly reachPage: (pa: number) => ReturnType<typeof reachPage>;
}

/** Boots a kernel in this thread, has it hand its devices over, and leaves QEMU as the kernel has left it. */
async function withHandover(use: (aftermath: Aftermath) => Promise<void>): Promise<void> {
  const hardware = await QemuHardware.powerOn(CONFIG, { extraArguments: EDU_ARGUMENTS });
  try {
    const devices = hardware.connect();
    assert(devices.kind === "qtest");
    const qtest = new QtestClient(devices.socket);
    const ram = new Ram(hardware.ram);
    const { firmware } = hardware;
    const kernel = boot(
      {
        memory: ram,
        mmio: qtest,
        interrupts: new CpuInterrupts(ram),
        firmware,
        clock: { nowNs: monotonicNs },
        serial: { writeLine: () => {}, readLine: () => null },
        kexec: {
          installed: CONFIG.installed,
          load: () => {},
          execute: () => {
            throw KERNEL_ENDED;
          },
        },
        powerOff: () => {
          throw KERNEL_ENDED;
        },
      },
      { commandLine: "liveupdate=on", kho: null },
      { release: "first" },
    );
    const users = new Map<string, DeviceUser>();
    assert.throws(
      () => handOver(kernel.spawn(), users),
      (error) => error === KERNEL_ENDED,
    );
    const path = `/proc/${hardware.process.pid}/fd/${FIRST_QEMU_FD}`;
    assert.equal(await verify.run([path]), 0);
    const image = openImage(path);
    try {
      const handover = readHandover(image, { fdtPa: null });
      await use({
        hardware,
        qtest,
        ram,
        unit: new Unit(qtest, firmware.drhds[0].registerBase),
        users,
        view: describeHandover(handover),
        names: deviceNames(handover),
        reach: (name) => reachDevice(handover, name),
        reachPage: (pa) => reachPage(handover, pa),
      });
    } finally {
      image.close();
    }
  } finally {
    await hardware.powerOff();
  }
}

/** Userspace of the kernel, to its end. */
function handOver(host: Host, users: Map<string, DeviceUser>): never {
  host.mkdir("/mnt/guests");
  host.mount("guests", "/mnt/guests", "memfs", "");
  const manager = host.open("/dev/liveupdate", O_RDWR);
  const session = liveupdate.createSession(host, manager, "devices");
  for (const [i, slot] of [EDU, NIC, EDU_BEHIND_PORT, FORGOTTEN].entries())
    users.set(
      slot,
      new DeviceUser(host, slot, slot === FORGOTTEN ? null : session, BigInt(16 * i)),
    );
  host.kexecFileLoad(`/boot/${IMAGE.name}`, null, "liveupdate=on");
  return host.reboot(LINUX_REBOOT_CMD_KEXEC);
}

/** Where `reach` says that an IOVA leads. */
function lookUp(reach: DeviceReach, iova: number): { pa: number; rights: string } | null {
  for (const range of reach.ranges) {
    const start = Number(range.iova);
    if (iova >= start && iova < start + range.lengthBytes)
      return { pa: Number(range.pa) + iova - start, rights: range.rights };
  }
  return null;
}

/** First and last places of each range, those right beside, and random ones: for accesses of so many bytes. */
function interestingIovas(reach: DeviceReach, lengthBytes: number, prng: Prng): number[] {
  const edges = reach.ranges.flatMap((range) => {
    const start = Number(range.iova);
    const end = start + range.lengthBytes;
    return [start - lengthBytes, start, end - lengthBytes, end];
  });
  const random = Array.from(
    { length: RANDOM_PAGES },
    () => prng.below(2 ** 20) * PAGE_SIZE * (prng.oneIn(2) ? 1 : 2 ** 12),
  );
  return [...edges, ...random, 0, 2 ** 47, 2 ** 48, 2 ** 50].filter(
    (iova) =>
      iova >= 0 &&
      (iova + lengthBytes <= MSI_WINDOW.start || iova >= MSI_WINDOW.end) &&
      // The user's own words.
      (iova < CONTROL || iova >= CONTROL + 64 * KIB),
  );
}

function bdfOf(name: string): number {
  const [, bus, device, fn] = name.split(/[:.]/).map((part) => Number.parseInt(part, 16));
  return (bus << 8) | (device << 3) | fn;
}

function assertFault(fault: FaultRecord | null, name: string, iova: number, isWrite: boolean) {
  assert(fault !== null, `${name} is not blocked at ${iova.toString(16)}`);
  const { sourceId, address } = fault;
  assert.deepEqual(
    { sourceId, page: address - (address % PAGE_SIZE), isWrite: fault.isWrite },
    { sourceId: bdfOf(name), page: iova - (iova % PAGE_SIZE), isWrite },
  );
}

/** BAR 0 of a function. */
function bar0({ hardware, qtest }: Aftermath, name: string): number {
  const { base, startBus } = hardware.firmware.ecams[0];
  const bar = qtest.read(base + ecamOffset(startBus, bdfOf(name)) + PCI_BASE_ADDRESS_0, 4);
  return bar - (bar % 16);
}

/** Compares `reach` with an edu's reads and writes. @returns how many were translated, and how many blocked */
function compareEdu(aftermath: Aftermath, name: string, prng: Prng): readonly [number, number] {
  const { qtest, ram, unit, users } = aftermath;
  const reach = aftermath.reach(name);
  assert.equal(reach.how, "translated");
  const user = users.get(name);
  assert(user !== undefined);
  const device = new Edu(qtest, bdfOf(name), bar0(aftermath, name));
  const counts: [number, number] = [0, 0];
  let marker = 0;
  for (const iova of interestingIovas(reach, 8, prng))
    for (const isWrite of [true, false]) {
      const what = `${name} ${isWrite ? "writes" : "reads"} ${iova.toString(16)}`;
      const found = lookUp(reach, iova);
      const mapped = user.at(iova);
      assert.equal(found === null, mapped === null, `${what}: reach and who mapped it disagree`);
      const words = [++marker, 0xfeed_0000 + marker];
      if (isWrite) {
        user.memory.set32(0, words[0]);
        user.memory.store32(4, words[1]);
        device.transfer(CONTROL, false);
      }
      assert.equal(unit.takeFault(), null, `${what}: before`);
      device.transfer(iova, isWrite);
      const fault = unit.takeFault();
      if (found === null || !found.rights.includes(isWrite ? "w" : "r")) {
        assertFault(fault, name, iova, isWrite);
        assert.deepEqual(user.at(iova), mapped, `${what}: it is blocked, and was done`);
        counts[1]++;
        continue;
      }
      assert.equal(fault, null, what);
      if (!isWrite) device.transfer(CONTROL + 8, true);
      const expected: readonly number[] | undefined = isWrite ? words : mapped?.words;
      const seen: readonly number[] | undefined = isWrite
        ? user.at(iova)?.words
        : [user.memory.load32(8), user.memory.load32(12)];
      assert.deepEqual(seen, expected, what);
      assert.deepEqual([ram.load32(found.pa), ram.load32(found.pa + 4)], expected, what);
      counts[0]++;
    }
  return counts;
}

const TX_DESCRIPTORS = 64;

/** The NIC as a reader of memory: what it sends is what it has read. */
class Transmitter {
  readonly #qtest: QtestClient;
  readonly #bar: number;
  readonly #memory: MappedMemory;
  #next = 0;

  constructor(qtest: QtestClient, bar: number, memory: MappedMemory) {
    this.#qtest = qtest;
    this.#bar = bar;
    this.#memory = memory;
    for (const [register, value] of [
      [E1000_TDBAL, CONTROL],
      [E1000_TDBAH, 0],
      [E1000_TDLEN, TX_DESCRIPTORS * E1000_DESCRIPTOR_BYTES],
      [E1000_TDH, 0],
      [E1000_TDT, 0],
      [E1000_TCTL, E1000_TCTL_EN],
    ])
      qtest.write(bar + register, 4, value);
  }

  send(iova: number, lengthBytes: number): void {
    const at = this.#next * E1000_DESCRIPTOR_BYTES;
    const command = E1000_TXD_CMD_EOP | E1000_TXD_CMD_IFCS | E1000_TXD_CMD_RS;
    this.#memory.set32(at, iova % 2 ** 32);
    this.#memory.set32(at + 4, Math.floor(iova / 2 ** 32));
    this.#memory.set32(at + 8, ((command << 24) | lengthBytes) >>> 0);
    this.#memory.store32(at + 12, 0);
    this.#next = (this.#next + 1) % TX_DESCRIPTORS;
    this.#qtest.write(this.#bar + E1000_TDT, 4, this.#next);
  }
}

/** For a thread of ours to take a frame from the wire. */
const SEND_MS_MAX = 5000;
const MAC = Uint8Array.of(2, 0, 0, 0, 0, 1);

/** Compares `reach` with what the NIC fetches. @returns how many frames were sent, and how many fetches blocked */
async function compareNic(aftermath: Aftermath, prng: Prng): Promise<readonly [number, number]> {
  const { qtest, ram, unit, users, hardware } = aftermath;
  const reach = aftermath.reach(NIC);
  const user = users.get(NIC);
  assert(user !== undefined);
  const nic = new Transmitter(qtest, bar0(aftermath, NIC), user.memory);
  const frame = new Uint8Array(TEST_FRAME_MIN_BYTES);
  let sent = 0;
  let blocked = 0;
  for (const iova of interestingIovas(reach, frame.length, prng)) {
    const what = `the NIC fetches ${iova.toString(16)}`;
    encodeTestFrame(frame, MAC, MAC, 0, sent);
    const found = lookUp(reach, iova);
    if (found === null) {
      nic.send(iova, frame.length);
      assertFault(unit.takeFault(), NIC, iova, false);
      blocked++;
      continue;
    }
    ram.write(found.pa, frame);
    nic.send(iova, frame.length);
    assert.equal(unit.takeFault(), null, what);
    sent++;
    // Of what it could not fetch QEMU's NIC sends something too, which is no test frame.
    const good = () => hardware.counts(0).transmitted - hardware.counts(0).transmitCorrupt;
    for (let i = 0; good() < sent; i++) {
      assert.ok(i < SEND_MS_MAX, `${what}: it has not sent what is there`);
      await sleep(1);
    }
    assert.deepEqual([good(), hardware.counts(0).transmitGaps], [sent, 0], what);
  }
  return [sent, blocked];
}

describe("a handover on QEMU", { skip: skipReason() }, () => {
  test("is whole to the inspector, and QEMU translates as reach says, for every function", async (t) => {
    const prng = new Prng(SEED);
    await withHandover(async (aftermath) => {
      const { view, names, reach, qtest, unit, users, hardware, ram } = aftermath;
      assert.deepEqual([view.problems, view.preserved?.unclaimedBytes], [[], 0]);
      assert.deepEqual(
        view.liveUpdate?.sessions.map(({ name, files }) => [name, files.length]),
        [["devices", 9]],
      );
      assert.deepEqual(names, [EDU, NIC, EDU_BEHIND_PORT]);
      for (const name of [EDU, EDU_BEHIND_PORT]) {
        const [translated, blocked] = compareEdu(aftermath, name, prng);
        t.diagnostic(`${name}: ${translated} translated, ${blocked} blocked`);
        assert.ok(translated > 20 && blocked > 100);
      }
      const [sent, blocked] = await compareNic(aftermath, prng);
      t.diagnostic(`${NIC}: ${sent} translated, ${blocked} blocked; seed ${SEED}`);
      assert.ok(sent > 10 && blocked > 50);

      // What was not handed over: blocked, also when somebody lets it master the bus.
      assert.equal(reach(FORGOTTEN).how, "blocked");
      const { base, startBus } = hardware.firmware.ecams[0];
      const command = base + ecamOffset(startBus, bdfOf(FORGOTTEN)) + PCI_COMMAND;
      const value = qtest.read(command, 2);
      assert.equal(value & PCI_COMMAND_MASTER, 0);
      qtest.write(command, 2, value | PCI_COMMAND_MASTER);
      const before = users.get(FORGOTTEN)?.at(0x2000);
      new Edu(qtest, bdfOf(FORGOTTEN), bar0(aftermath, FORGOTTEN)).transfer(0x2000, true);
      assertFault(unit.takeFault(), FORGOTTEN, 0x2000, true);
      assert.deepEqual(users.get(FORGOTTEN)?.at(0x2000), before);

      // The other way round: who reaches a page.
      const found = lookUp(reach(EDU), 0x2000);
      assert(found !== null && ram.contains(found.pa, PAGE_SIZE));
      assert.deepEqual(aftermath.reachPage(found.pa).reachedBy, [
        { function: EDU, iova: "0x2000", canRead: true, canWrite: true, session: "devices" },
      ]);
    });
  });
});
