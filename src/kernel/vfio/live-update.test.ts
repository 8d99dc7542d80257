import assert from "node:assert/strict";
import { test } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { iommufd_area_ser, iommufd_hwpt_ser, iommufd_ser } from "../../abi/iommufd-luo.ts";
import { KHO_RECORD_ALIGN_BYTES } from "../../abi/kho-record.ts";
import type { Struct } from "../../abi/struct.ts";
import { VFIO_PCI_FLAGS_ALL, vfio_pci_ser } from "../../abi/vfio-luo.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import * as iommufd from "../../host/iommufd.ts";
import * as liveupdate from "../../host/liveupdate.ts";
import * as vfio from "../../host/vfio.ts";
import { TestKernel } from "./test-rig.ts";

const BYTES = 2 * MIB;
const CONFIG = 7;
const COMMAND = 4;
const MEMORY_AND_MASTER = 6;
const TOKEN = { memory: 1n, iommufd: 2n, device: 3n } as const;
const HWPT_TOKEN = 0xfeedn;
/** A device behind the remapping unit, below a root port; and one that nothing translates. */
const TRANSLATED = 1;
const NOIOMMU = 2;

interface Vm {
  readonly device: number;
  readonly iommufd: number;
  readonly memory: number;
  readonly event: number;
  readonly ioasId: number;
  readonly hwptId: number;
  readonly deviceId: number;
}

/** Memory, IOAS, HWPT with token, device with interrupt, running. */
function buildVm(kernel: TestKernel, index: number, memory = kernel.memory(BYTES)): Vm {
  const { host } = kernel;
  const ctx = kernel.openIommufd();
  const device = kernel.openDevice(index);
  const event = kernel.eventfd();
  const deviceId = vfio.bindIommufd(host, device, ctx);
  const ioasId = iommufd.ioasAlloc(host, ctx);
  iommufd.ioasMapFile(host, ctx, {
    ioasId,
    fileFd: memory,
    start: 0,
    lengthBytes: BYTES,
    iova: 0,
    writable: true,
  });
  let hwptId = 0;
  if (index !== NOIOMMU) {
    hwptId = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
    iommufd.hwptMarkPreserve(host, ctx, hwptId, HWPT_TOKEN);
    vfio.attach(host, device, hwptId);
  } else hwptId = vfio.attach(host, device, ioasId);
  vfio.setMsiEventfd(host, device, event);
  vfio.openRegion(host, device, CONFIG).write32(COMMAND, MEMORY_AND_MASTER);
  return { device, iommufd: ctx, memory, event, ioasId, hwptId, deviceId };
}

function preserveVm(kernel: TestKernel, vm: Vm, name = "vm0"): number {
  const { host } = kernel;
  const luo = kernel.fds.install(kernel.luo.openDevice());
  const session = liveupdate.createSession(host, luo, name);
  liveupdate.preserveFd(host, session, vm.memory, TOKEN.memory);
  liveupdate.preserveFd(host, session, vm.iommufd, TOKEN.iommufd);
  liveupdate.preserveFd(host, session, vm.device, TOKEN.device);
  kernel.close(luo);
  return session;
}

function retrieveSession(kernel: TestKernel, name = "vm0"): number {
  const luo = kernel.fds.install(kernel.luo.openDevice());
  const session = liveupdate.retrieveSession(kernel.host, luo, name);
  kernel.close(luo);
  return session;
}

function retrieveVm(kernel: TestKernel, session: number): Omit<Vm, "hwptId" | "ioasId"> {
  const { host } = kernel;
  const memory = liveupdate.retrieveFd(host, session, TOKEN.memory);
  const ctx = liveupdate.retrieveFd(host, session, TOKEN.iommufd);
  const device = liveupdate.retrieveFd(host, session, TOKEN.device);
  const event = kernel.eventfd();
  const deviceId = vfio.deviceId(host, device);
  return { device, iommufd: ctx, memory, event, deviceId };
}

/** The ordinary chain again, over the retrieved memory; the device moves there. */
function rebuild(kernel: TestKernel, vm: Omit<Vm, "hwptId" | "ioasId">): Vm {
  const { host } = kernel;
  const ioasId = iommufd.ioasAlloc(host, vm.iommufd);
  iommufd.ioasMapFile(host, vm.iommufd, {
    ioasId,
    fileFd: vm.memory,
    start: 0,
    lengthBytes: BYTES,
    iova: 0,
    writable: true,
  });
  const { deviceId } = vm;
  const hwptId = iommufd.hwptAlloc(host, vm.iommufd, { deviceId, ptId: ioasId });
  iommufd.hwptMarkPreserve(host, vm.iommufd, hwptId, HWPT_TOKEN);
  vfio.attach(host, vm.device, hwptId);
  return { ...vm, ioasId, hwptId };
}

function physicalOf(kernel: TestKernel, fd: number, offset: number): number {
  const pinned = kernel.fds.get(fd).pin(offset, PAGE_SIZE);
  const { pa } = pinned.extents[0];
  pinned.unpin();
  return pa;
}

function failsWith(code: string, message: RegExp = /./) {
  return (error: unknown) => {
    assert.ok(error instanceof KernelError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
}

test("a device writes memory and raises interrupts before, during and after ten updates; nothing leaks", () => {
  let kernel = TestKernel.cold();
  let vm = buildVm(kernel, TRANSLATED);
  const { devices, vtd } = kernel.hardware;
  const resets = devices[TRANSLATED].resets;
  let usage: unknown = null;
  for (let update = 0; update < 10; update++) {
    preserveVm(kernel, vm);
    assert.ok(devices[TRANSLATED].dmaWrite(0x1000, update));
    const old = kernel;
    const next = kernel.jumpUnbooted();
    // No kernel is there.
    assert.ok(devices[TRANSLATED].dmaWrite(0x2000, 100 + update));
    devices[TRANSLATED].raiseInterrupt();
    next.boot();
    kernel = next;
    assert.notEqual(kernel, old);
    assert.ok(devices[TRANSLATED].dmaWrite(0x3000, 200 + update));

    const session = retrieveSession(kernel);
    const retrieved = retrieveVm(kernel, session);
    vfio.setMsiEventfd(kernel.host, retrieved.device, retrieved.event);
    assert.equal(kernel.takeEvents(retrieved.event), 1, "the interrupt of the jump is there");
    for (const [offset, value] of [
      [0x1000, update],
      [0x2000, 100 + update],
      [0x3000, 200 + update],
    ])
      assert.equal(kernel.loadMapped(retrieved.memory, offset), value);

    vm = rebuild(kernel, retrieved);
    liveupdate.finish(kernel.host, session);
    kernel.close(session);
    assert.ok(devices[TRANSLATED].dmaWrite(0x4000, 300 + update));
    assert.equal(kernel.loadMapped(vm.memory, 0x4000), 300 + update);
    devices[TRANSLATED].raiseInterrupt();
    assert.equal(kernel.vfio.deliverInterrupts(), true);
    assert.equal(kernel.takeEvents(vm.event), 1);
    assert.equal(kernel.iommu.restoredCount, 0);
    if (update === 1) usage = kernel.usage();
  }
  assert.deepEqual(kernel.usage(), usage);
  assert.equal(devices[TRANSLATED].resets, resets, "it was never reset");
  assert.equal(vtd.statistics.faults, 0);
  kernel.close(vm.device, vm.iommufd, vm.memory, vm.event);
  assert.equal(kernel.vectors.usedCount, 0);
  assert.equal(kernel.iommu.domainCount, 0);
  assert.equal(kernel.iommu.domainIdCount, 0);
});

test("without IOMMU: the same memory is pinned again, the device goes on, and can only move to the same memory", () => {
  const before = TestKernel.cold();
  const vm = buildVm(before, NOIOMMU);
  const device = before.hardware.devices[NOIOMMU];
  const { physical, lengthBytes } = iommufd.noiommuGetPa(
    before.host,
    vm.iommufd,
    vm.ioasId,
    0x1004,
  );
  assert.equal(physical, physicalOf(before, vm.memory, 0x1000) + 4);
  assert.ok(lengthBytes >= PAGE_SIZE - 4 && lengthBytes <= BYTES - 0x1004);
  assert.ok(device.dmaWrite(physical, 7));
  preserveVm(before, vm);
  const kernel = before.jumpUnbooted();
  assert.ok(device.dmaWrite(physical, 8));
  device.raiseInterrupt();
  kernel.boot();
  const { host } = kernel;

  assert.throws(() => kernel.openDevice(NOIOMMU), failsWith("EBUSY", /session/));
  const session = retrieveSession(kernel);
  const retrieved = retrieveVm(kernel, session);
  assert.equal(kernel.loadMapped(retrieved.memory, 0x1004), 8);
  vfio.setMsiEventfd(host, retrieved.device, retrieved.event);
  assert.equal(kernel.takeEvents(retrieved.event), 1);
  assert.throws(
    () => kernel.fds.get(retrieved.memory).truncate(0),
    isKernelError,
    "it is pinned, and sealed",
  );
  assert.throws(() => liveupdate.finish(host, session), failsWith("EBUSY"));

  // Other memory at the same IOVAs: refused, and the attachment stays.
  const otherMemory = kernel.memory(BYTES);
  const otherIoas = iommufd.ioasAlloc(host, retrieved.iommufd);
  const mapping = { start: 0, lengthBytes: BYTES, iova: 0, writable: true };
  iommufd.ioasMapFile(host, retrieved.iommufd, {
    ioasId: otherIoas,
    fileFd: otherMemory,
    ...mapping,
  });
  assert.throws(
    () => vfio.attach(host, retrieved.device, otherIoas),
    failsWith("EINVAL", /iova 0x0/),
  );
  // The right memory, but not all of it, or not writable.
  const partIoas = iommufd.ioasAlloc(host, retrieved.iommufd);
  iommufd.ioasMapFile(host, retrieved.iommufd, {
    ioasId: partIoas,
    fileFd: retrieved.memory,
    ...mapping,
    lengthBytes: BYTES - PAGE_SIZE,
  });
  assert.throws(
    () => vfio.attach(host, retrieved.device, partIoas),
    failsWith("EINVAL", /iova 0x1ff000/),
  );
  const readIoas = iommufd.ioasAlloc(host, retrieved.iommufd);
  iommufd.ioasMapFile(host, retrieved.iommufd, {
    ioasId: readIoas,
    fileFd: retrieved.memory,
    ...mapping,
    writable: false,
  });
  assert.throws(() => vfio.attach(host, retrieved.device, readIoas), failsWith("EINVAL"));
  for (const id of [otherIoas, partIoas, readIoas]) iommufd.destroy(host, retrieved.iommufd, id);
  kernel.close(otherMemory);

  const rebuilt = rebuild(kernel, retrieved);
  liveupdate.finish(host, session);
  kernel.close(session);
  assert.ok(device.dmaWrite(physical, 9), "bus mastering was on all the while");
  assert.equal(kernel.loadMapped(rebuilt.memory, 0x1004), 9);
  kernel.close(rebuilt.device, rebuilt.iommufd, rebuilt.memory, rebuilt.event);
  assert.equal(device.dmaWrite(physical, 10), false, "closing it has stopped it");
  assert.equal(kernel.kho.unrestoredPages(), 0);
});

test("retrieve() fails with EPERM when a device without IOMMU meets a kernel that does not allow it; it is stopped", () => {
  const before = TestKernel.cold();
  const vm = buildVm(before, NOIOMMU);
  preserveVm(before, vm);
  const kernel = before.jump({ enableUnsafeNoiommuMode: false });
  const device = before.hardware.devices[NOIOMMU];
  const session = retrieveSession(kernel);
  assert.throws(
    () => liveupdate.retrieveFd(kernel.host, session, TOKEN.device),
    failsWith("EPERM"),
  );
  assert.ok(device.dmaWrite(0x100000, 1), "still running");
  kernel.close(session);
  assert.equal(device.dmaWrite(0x100000, 2), false);
  assert.equal(kernel.vectors.usedCount, 0);
});

test("an interrupt that the old VMM was told of and had not read is told to the new one", () => {
  const before = TestKernel.cold();
  const vm = buildVm(before, TRANSLATED);
  preserveVm(before, vm);
  before.hardware.devices[TRANSLATED].raiseInterrupt();
  assert.equal(before.vfio.deliverInterrupts(), true);
  const kernel = before.jump();
  const retrieved = retrieveVm(kernel, retrieveSession(kernel));
  vfio.setMsiEventfd(kernel.host, retrieved.device, retrieved.event);
  assert.equal(kernel.takeEvents(retrieved.event), 1);
  vfio.setMsiEventfd(kernel.host, retrieved.device, retrieved.event);
  assert.equal(kernel.takeEvents(retrieved.event), 0, "and only once");
});

test("no vector that an incoming device raises is given to another device", () => {
  const before = TestKernel.cold();
  const vm = buildVm(before, TRANSLATED);
  const vector = before.device(TRANSLATED).msiVector;
  preserveVm(before, vm);
  const kernel = before.jump();
  const other = buildVm(kernel, 0);
  assert.notEqual(kernel.device(0).msiVector, vector);
  before.hardware.devices[TRANSLATED].raiseInterrupt();
  assert.equal(kernel.vfio.deliverInterrupts(), false);
  assert.equal(kernel.takeEvents(other.event), 0);
});

test("preserve() of an iommufd fails with EINVAL when an area is not in memory of the session, and names the area", () => {
  const kernel = TestKernel.cold();
  const { host } = kernel;
  const vm = buildVm(kernel, TRANSLATED);
  const luo = kernel.fds.install(kernel.luo.openDevice());
  const session = liveupdate.createSession(host, luo, "vm0");
  const preserve = () => liveupdate.preserveFd(host, session, vm.iommufd, TOKEN.iommufd);
  assert.throws(preserve, failsWith("EINVAL", /iova 0x0\.\.0x1fffff under hwpt 3.*memfd/));
  const elsewhere = liveupdate.createSession(host, luo, "other");
  liveupdate.preserveFd(host, elsewhere, vm.memory, TOKEN.memory);
  assert.throws(preserve, failsWith("EINVAL", /session "vm0"/));
  kernel.close(elsewhere);
  liveupdate.preserveFd(host, session, vm.memory, TOKEN.memory);
  preserve();
});

test("preserve() of an iommufd fails with EINVAL when its memory is a memfd without seals", () => {
  const kernel = TestKernel.cold();
  const vm = buildVm(kernel, TRANSLATED, kernel.memory(BYTES, false));
  assert.throws(() => preserveVm(kernel, vm), failsWith("EINVAL", /iova 0x0\.\.0x1fffff.*F_SEAL_/));
});

test("preserve() of a device fails with EINVAL without its iommufd, unbound, or not on a marked HWPT", () => {
  const kernel = TestKernel.cold();
  const { host } = kernel;
  const vm = buildVm(kernel, TRANSLATED);
  const luo = kernel.fds.install(kernel.luo.openDevice());
  const session = liveupdate.createSession(host, luo, "vm0");
  const preserve = (fd: number) => liveupdate.preserveFd(host, session, fd, TOKEN.device);
  assert.throws(() => preserve(vm.device), failsWith("EINVAL", /iommufd of 0000:01:00\.0/));
  const unbound = kernel.openDevice(0);
  assert.throws(() => preserve(unbound), failsWith("EINVAL", /not bound/));
  const second = kernel.openDevice(TRANSLATED);
  assert.throws(() => preserve(second), failsWith("EINVAL", /not bound by this file/));
  const otherHwpt = iommufd.hwptAlloc(host, vm.iommufd, {
    deviceId: vm.deviceId,
    ptId: vm.ioasId,
  });
  vfio.attach(host, vm.device, otherHwpt);
  liveupdate.preserveFd(host, session, vm.memory, TOKEN.memory);
  liveupdate.preserveFd(host, session, vm.iommufd, TOKEN.iommufd);
  assert.throws(() => preserve(vm.device), failsWith("EINVAL", /HWPT/));
  vfio.detach(host, vm.device);
  assert.throws(() => preserve(vm.device), failsWith("EINVAL", /HWPT/));
  vfio.attach(host, vm.device, vm.hwptId);
  preserve(vm.device);
});

test("what is preserved is fixed (EBUSY) until the session is closed", () => {
  const kernel = TestKernel.cold();
  const { host } = kernel;
  const vm = buildVm(kernel, TRANSLATED);
  const spare = iommufd.hwptAlloc(host, vm.iommufd, { deviceId: vm.deviceId, ptId: vm.ioasId });
  const more = kernel.memory(PAGE_SIZE);
  const map = () =>
    iommufd.ioasMapFile(host, vm.iommufd, {
      ioasId: vm.ioasId,
      fileFd: more,
      start: 0,
      lengthBytes: PAGE_SIZE,
      iova: BYTES,
      writable: false,
    });
  const unmap = () =>
    iommufd.ioasUnmap(host, vm.iommufd, { ioasId: vm.ioasId, iova: BYTES, lengthBytes: PAGE_SIZE });
  const usage = kernel.usage();
  const session = preserveVm(kernel, vm);
  const fixed = {
    map,
    unmap,
    copy: () =>
      iommufd.ioasCopy(host, vm.iommufd, {
        fromIoasId: vm.ioasId,
        fromIova: 0,
        lengthBytes: PAGE_SIZE,
        toIoasId: vm.ioasId,
        writable: false,
      }),
    allow: () => iommufd.ioasAllowIovas(host, vm.iommufd, vm.ioasId, []),
    mark: () => iommufd.hwptMarkPreserve(host, vm.iommufd, spare, 99n),
    destroy: () => iommufd.destroy(host, vm.iommufd, vm.hwptId),
    attach: () => vfio.attach(host, vm.device, spare),
    detach: () => vfio.detach(host, vm.device),
    reset: () => vfio.reset(host, vm.device),
  };
  for (const [name, change] of Object.entries(fixed))
    assert.throws(change, failsWith("EBUSY"), name);
  assert.ok(kernel.hardware.devices[TRANSLATED].dmaWrite(0, 5), "the VM runs on");
  kernel.close(session);
  assert.deepEqual(kernel.usage(), usage);
  map();
  unmap();
  iommufd.hwptMarkPreserve(host, vm.iommufd, spare, 99n);
  vfio.attach(host, vm.device, spare);
  iommufd.destroy(host, vm.iommufd, vm.hwptId);
  vfio.reset(host, vm.device);
});

test("an incoming device is opened by its session only, and moves only to the same translations", () => {
  const before = TestKernel.cold();
  preserveVm(before, buildVm(before, TRANSLATED));
  const kernel = before.jump();
  const { host } = kernel;
  assert.throws(() => kernel.openDevice(TRANSLATED), failsWith("EBUSY", /session/));
  const session = retrieveSession(kernel);
  const vm = retrieveVm(kernel, session);
  assert.throws(() => kernel.openDevice(TRANSLATED), failsWith("EBUSY"));

  const restored = iommufd.hwptRetrieve(host, vm.iommufd, HWPT_TOKEN);
  assert.throws(() => iommufd.hwptRetrieve(host, vm.iommufd, 1n), failsWith("ENOENT"));
  assert.equal(vfio.attach(host, vm.device, restored), restored, "it is there already");
  assert.throws(() => iommufd.destroy(host, vm.iommufd, restored), failsWith("EBUSY"));
  assert.throws(
    () => iommufd.hwptMarkPreserve(host, vm.iommufd, restored, 5n),
    failsWith("EINVAL"),
  );
  assert.throws(
    () => iommufd.hwptAlloc(host, vm.iommufd, { deviceId: vm.deviceId, ptId: restored }),
    failsWith("EOPNOTSUPP"),
  );

  const ioasId = iommufd.ioasAlloc(host, vm.iommufd);
  iommufd.ioasMapFile(host, vm.iommufd, {
    ioasId,
    fileFd: vm.memory,
    start: PAGE_SIZE,
    lengthBytes: BYTES - PAGE_SIZE,
    iova: PAGE_SIZE,
    writable: true,
  });
  assert.throws(() => vfio.attach(host, vm.device, ioasId), failsWith("EINVAL", /iova 0x0/));
  assert.ok(kernel.hardware.devices[TRANSLATED].dmaWrite(0, 77), "the old tables are in place");
  assert.throws(() => liveupdate.finish(host, session), failsWith("EBUSY"));
  iommufd.ioasMapFile(host, vm.iommufd, {
    ioasId,
    fileFd: vm.memory,
    start: 0,
    lengthBytes: PAGE_SIZE,
    iova: 0,
    writable: true,
  });
  const auto = vfio.attach(host, vm.device, ioasId);
  assert.notEqual(auto, restored);
  assert.throws(() => vfio.attach(host, vm.device, restored), failsWith("EINVAL", /previous/));
  iommufd.destroy(host, vm.iommufd, restored);
  assert.equal(kernel.iommu.restoredCount, 0);
  liveupdate.finish(host, session);
  assert.ok(kernel.hardware.devices[TRANSLATED].dmaWrite(0, 78));
  assert.equal(kernel.loadMapped(vm.memory, 0), 78);
});

test("a session that is finished without retrieving stops its device before its memory is freed", () => {
  for (const index of [TRANSLATED, NOIOMMU]) {
    const before = TestKernel.cold();
    const vm = buildVm(before, index);
    const address = index === NOIOMMU ? physicalOf(before, vm.memory, 0) : 0;
    preserveVm(before, vm);
    const kernel = before.jump();
    const device = kernel.hardware.devices[index];
    const { resets } = device;
    assert.ok(device.dmaWrite(address, 1));
    const session = retrieveSession(kernel);
    liveupdate.finish(kernel.host, session);
    kernel.close(session);
    assert.equal(device.dmaWrite(address, 2), false);
    assert.equal(device.resets, resets + 1);
    assert.equal(kernel.iommu.restoredCount, 0);
    assert.equal(kernel.iommu.domainIdCount, 0);
    assert.equal(kernel.vectors.usedCount, 0);
    assert.equal(kernel.kho.unrestoredPages(), 0);
    kernel.close(kernel.openDevice(index));
  }
});

test("a device that was retrieved and closed is stopped at the end of its session", () => {
  const before = TestKernel.cold();
  preserveVm(before, buildVm(before, TRANSLATED));
  const kernel = before.jump();
  const session = retrieveSession(kernel);
  const vm = retrieveVm(kernel, session);
  kernel.close(vm.device, vm.iommufd, vm.memory);
  const device = kernel.hardware.devices[TRANSLATED];
  assert.ok(device.dmaWrite(0, 1), "the session has it");
  const again = liveupdate.retrieveFd(kernel.host, session, TOKEN.device);
  vfio.detach(kernel.host, again);
  assert.equal(device.dmaWrite(0, 2), false);
  kernel.close(again);
  liveupdate.finish(kernel.host, session);
  kernel.close(session);
  assert.equal(kernel.iommu.restoredCount, 0);
  assert.equal(kernel.vectors.usedCount, 0);
  kernel.close(kernel.openDevice(TRANSLATED));
});

test("a failure at each step of preserve, freeze, retrieve, swap and finish leaves everything as it was", () => {
  for (const index of [TRANSLATED, NOIOMMU]) {
    const kernel = TestKernel.cold();
    const vm = buildVm(kernel, index);
    const { faults, host } = kernel;
    // Once without a failure: context tables and radix nodes that stay.
    kernel.close(preserveVm(kernel, vm));
    const usage = kernel.usage();
    const points = faults.record(() => kernel.close(preserveVm(kernel, vm)));
    assert.ok(points.includes("iommufd.preserve:done") && points.includes("vfio.preserve:done"));
    for (let i = 0; i < points.length; i++) {
      faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
      const luo = kernel.fds.install(kernel.luo.openDevice());
      let session = -1;
      assert.throws(
        () => {
          session = liveupdate.createSession(host, luo, "vm0");
          liveupdate.preserveFd(host, session, vm.memory, TOKEN.memory);
          liveupdate.preserveFd(host, session, vm.iommufd, TOKEN.iommufd);
          liveupdate.preserveFd(host, session, vm.device, TOKEN.device);
        },
        isKernelError,
        `${points[i]} (${i})`,
      );
      assert.ok(faults.disarm(), points[i]);
      if (session >= 0) kernel.close(session);
      kernel.close(luo);
      assert.deepEqual(kernel.usage(), usage, `${points[i]} (${i})`);
    }

    preserveVm(kernel, vm);
    const preserved = kernel.usage();
    const freezePoints = faults.record(() => kernel.luo.freeze().unfreeze());
    assert.ok(freezePoints.includes("vfio.freeze:write"));
    for (let i = 0; i < freezePoints.length; i++) {
      faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
      assert.throws(() => kernel.luo.freeze(), isKernelError, freezePoints[i]);
      assert.ok(faults.disarm());
      assert.deepEqual(kernel.usage(), preserved, freezePoints[i]);
    }
    kernel.jump();
  }
});

test("a failure at each step of retrieving leaves the device running and the session able to finish", () => {
  for (const index of [TRANSLATED, NOIOMMU]) {
    const setUp = () => {
      const before = TestKernel.cold();
      preserveVm(before, buildVm(before, index));
      const kernel = before.jump();
      return { kernel, session: retrieveSession(kernel) };
    };
    const dry = setUp();
    const points = dry.kernel.faults.record(() => retrieveVm(dry.kernel, dry.session));
    assert.ok(points.includes("iommufd.retrieve:hwpt") && points.includes("vfio.retrieve:done"));
    for (let i = 0; i < points.length; i++) {
      const { kernel, session } = setUp();
      kernel.faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
      const fds: number[] = [];
      assert.throws(() => {
        for (const token of Object.values(TOKEN))
          fds.push(liveupdate.retrieveFd(kernel.host, session, token));
      }, isKernelError);
      assert.ok(kernel.faults.disarm());
      assert.equal(kernel.device(index).isBound, false);
      assert.equal(kernel.device(index).pci.configRead(COMMAND, 2) & 4, 4, "bus mastering is on");
      kernel.close(...fds);
      liveupdate.finish(kernel.host, session);
      kernel.close(session);
      assert.equal(kernel.kho.unrestoredPages(), 0, points[i]);
      assert.equal(kernel.iommu.restoredCount, 0);
      assert.equal(kernel.vectors.usedCount, 0);
      assert.equal(kernel.iommu.domainCount, 0);
    }
  }
});

test("sessions are apart: one that fails and is finished takes nothing from another", () => {
  const before = TestKernel.cold();
  const { devices } = before.hardware;
  preserveVm(before, buildVm(before, 0), "vm0");
  preserveVm(before, buildVm(before, TRANSLATED), "vm1");
  const kernel = before.jump();
  const failing = retrieveSession(kernel, "vm0");
  // The second HWPT-owning step fails: what the first one claimed must be given back.
  const points = ["luo.retrieve:handler", "iommufd.retrieve:hwpt", "iommufd:object"];
  kernel.faults.arm(points.length - 1, (point) => {
    assert.equal(point, "iommufd:object");
    return new KernelError("ENOMEM", point, "injected");
  });
  assert.throws(
    () => liveupdate.retrieveFd(kernel.host, failing, TOKEN.iommufd),
    failsWith("ENOMEM"),
  );
  kernel.faults.disarm();
  liveupdate.finish(kernel.host, failing);
  assert.equal(kernel.iommu.restoredCount, 1, "the other session's is left");
  assert.equal(devices[0].dmaWrite(0, 1), false);
  assert.ok(devices[TRANSLATED].dmaWrite(0, 1));
  const session = retrieveSession(kernel, "vm1");
  const vm = rebuild(kernel, retrieveVm(kernel, session));
  liveupdate.finish(kernel.host, session);
  assert.ok(devices[TRANSLATED].dmaWrite(0, 2));
  assert.equal(kernel.loadMapped(vm.memory, 0), 2);
  assert.equal(kernel.iommu.restoredCount, 0);
});

test("a failure at each step of the swap leaves the old translations in place", () => {
  const before = TestKernel.cold();
  preserveVm(before, buildVm(before, TRANSLATED));
  const kernel = before.jump();
  const session = retrieveSession(kernel);
  const vm = retrieveVm(kernel, session);
  const { host, faults } = kernel;
  const device = kernel.hardware.devices[TRANSLATED];
  const ioasId = iommufd.ioasAlloc(host, vm.iommufd);
  const usage = kernel.usage();
  for (let i = 0; ; i++) {
    faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
    let failed = false;
    try {
      iommufd.ioasMapFile(host, vm.iommufd, {
        ioasId,
        fileFd: vm.memory,
        start: 0,
        lengthBytes: BYTES,
        iova: 0,
        writable: true,
      });
      vfio.attach(host, vm.device, ioasId);
    } catch (error) {
      assert.ok(isKernelError(error));
      failed = true;
    }
    const reached = faults.disarm();
    assert.equal(failed, reached);
    assert.ok(device.dmaWrite(8, i));
    assert.equal(kernel.loadMapped(vm.memory, 8), i);
    if (!reached) {
      assert.ok(i >= 5, `${i} steps`);
      break;
    }
    assert.throws(() => liveupdate.finish(host, session), failsWith("EBUSY"));
    if (iommufd.iovaRanges(host, vm.iommufd, ioasId).alignment === 1)
      try {
        iommufd.ioasUnmap(host, vm.iommufd, { ioasId, iova: 0, lengthBytes: BYTES });
      } catch (error) {
        assert.ok(isKernelError(error, "ENOENT"));
      }
    assert.deepEqual(kernel.usage(), usage, `step ${i}`);
  }
  liveupdate.finish(host, session);
});

test("decode() refuses a device's record with any field wrong, and names it", () => {
  refusesEachField(TRANSLATED, TOKEN.device, [
    {
      layout: vfio_pci_ser as unknown as Struct<never>,
      at: 0,
      // Retrieving finds these out: they name things of other files.
      skip: ["iommufd_token", "hwpt_index"],
      wrong: {
        flags: [VFIO_PCI_FLAGS_ALL + 1, 1, 0],
        msi_vector: [0, 31, 256, 200],
        bdf: [0xffff, 0x20],
      },
    },
  ]);
});

test("decode() refuses an iommufd's record with any field wrong, and names it", () => {
  const hwptAt = iommufd_ser.sizeBytes;
  refusesEachField(TRANSLATED, TOKEN.iommufd, [
    {
      layout: iommufd_ser as unknown as Struct<never>,
      at: 0,
      skip: [],
      wrong: { hwpt_count: [2 ** 32 - 1, 2 ** 16 + 1, 2 ** 16], area_count: [2 ** 32 - 1, 1] },
    },
    {
      layout: iommufd_hwpt_ser as unknown as Struct<never>,
      at: hwptAt,
      // Any token and domain is good for one HWPT; retrieving finds out whether the domain is there.
      skip: ["token", "domain_id"],
      wrong: { flags: [2, 3, 4, 2 ** 31], area_count: [1, 2 ** 32 - 1] },
    },
  ]);
  refusesEachField(NOIOMMU, TOKEN.iommufd, [
    {
      layout: iommufd_hwpt_ser as unknown as Struct<never>,
      at: hwptAt,
      skip: [],
      wrong: { flags: [0, 2, 7], token: [1], domain_id: [1], area_count: [0, 2] },
    },
    {
      layout: iommufd_area_ser as unknown as Struct<never>,
      at: hwptAt + iommufd_hwpt_ser.sizeBytes,
      skip: ["file_token"],
      wrong: {
        iova: [1, 2 ** 52, 2 ** 60],
        length: [0, 1, 2 ** 52 + PAGE_SIZE, 2 ** 60],
        file_offset: [1, 2 ** 53],
        prot: [0, 4],
      },
    },
  ]);
});

test("decode() refuses a record that names what other files do not have", () => {
  const device = { index: TRANSLATED, record: TOKEN.device };
  const cases = [
    { ...device, field: "iommufd_token", at: vfio_pci_ser.offset.iommufd_token, value: 99 },
    { ...device, field: "iommufd_token", at: vfio_pci_ser.offset.iommufd_token, value: 1 },
    { ...device, field: "iommufd_token", at: vfio_pci_ser.offset.iommufd_token, value: 3 },
    { ...device, field: "hwpt_index", at: vfio_pci_ser.offset.hwpt_index, value: 1 },
    {
      index: TRANSLATED,
      record: TOKEN.iommufd,
      field: "domain_id",
      at: iommufd_ser.sizeBytes + iommufd_hwpt_ser.offset.domain_id,
      value: 5,
    },
    {
      index: NOIOMMU,
      record: TOKEN.iommufd,
      field: "file_token",
      at: iommufd_ser.sizeBytes + iommufd_hwpt_ser.sizeBytes + iommufd_area_ser.offset.file_token,
      value: 9,
    },
  ];
  for (const { index, record, field, at, value } of cases) {
    const before = TestKernel.cold();
    preserveVm(before, buildVm(before, index));
    const pa = recordOf(before, record);
    const next = before.jumpUnbooted();
    before.hardware.ram.store32(pa + at, value);
    assert.throws(
      () => next.boot(),
      (error) => error instanceof HandoverError && error.field.endsWith(`.${field}`),
      `${field} = ${value}`,
    );
  }
});

test("an area beyond the end of its file fails the retrieve, and the device is stopped", () => {
  const at =
    iommufd_ser.sizeBytes + iommufd_hwpt_ser.sizeBytes + iommufd_area_ser.offset.file_offset;
  const before = TestKernel.cold();
  preserveVm(before, buildVm(before, NOIOMMU));
  const pa = recordOf(before, TOKEN.iommufd);
  const next = before.jumpUnbooted();
  before.hardware.ram.store32(pa + at, BYTES);
  next.boot();
  const session = retrieveSession(next);
  const retrieve = () => liveupdate.retrieveFd(next.host, session, TOKEN.device);
  assert.throws(retrieve, isKernelError);
  assert.throws(retrieve, isKernelError, "and again");
  liveupdate.finish(next.host, session);
  next.close(session);
  assert.equal(next.device(NOIOMMU).pci.configRead(COMMAND, 2) & 4, 0, "bus mastering is off");
  assert.equal(next.vectors.usedCount, 0);
  assert.equal(next.kho.unrestoredPages(), 0);
});

interface FieldCase {
  readonly layout: Struct<never>;
  readonly at: number;
  readonly skip: readonly string[];
  readonly wrong: Readonly<Record<string, readonly number[]>>;
}

/** Writes wrong values into each field of a record between two kernels; the record as it was still boots. */
function refusesEachField(index: number, token: bigint, cases: readonly FieldCase[]): void {
  const before = TestKernel.cold();
  preserveVm(before, buildVm(before, index));
  const pa = recordOf(before, token);
  const { hardware } = before;
  const { ram } = hardware;
  const parameters = before.end();
  // A kernel uses the memory that is not preserved, so each try needs all of it again.
  const [{ start, lengthBytes }] = ram.ranges;
  const handedOver = new Uint8Array(lengthBytes);
  ram.read(start, handedOver);
  for (const { layout, at, skip, wrong } of cases)
    for (const [field, offset] of Object.entries(layout.offset) as [string, number][]) {
      if (skip.includes(field)) continue;
      const size = (layout.fields as Record<string, { sizeBytes: number }>)[field].sizeBytes;
      for (const value of wrong[field] ?? [0xffff]) {
        const words = [value % 2 ** 32, Math.floor(value / 2 ** 32)];
        const bytes = new Uint8Array(new Uint32Array(words).buffer, 0, size);
        ram.write(pa + at + offset, bytes);
        assert.throws(
          () => TestKernel.enter(hardware, parameters).luo.decode(),
          (error) => {
            assert.ok(error instanceof HandoverError, `${field} ${value}: ${String(error)}`);
            assert.match(error.field, /session "vm0"/);
            return true;
          },
          `${layout.name}.${field} = ${value}`,
        );
        ram.write(start, handedOver);
      }
    }
  TestKernel.enter(hardware, parameters).boot();
}

/** Where a preserved file's record lies: found by its content, in some preserved page. */
function recordOf(kernel: TestKernel, token: bigint): number {
  const { ram } = kernel.hardware;
  for (let pa = MIB; pa < 32 * MIB; pa += KHO_RECORD_ALIGN_BYTES) {
    if (!kernel.kho.isPreserved(pa - (pa % PAGE_SIZE), 0)) continue;
    if (token === TOKEN.device) {
      const ser = vfio_pci_ser.read(ram, pa);
      if (ser.vendor_id === 0x1234 && ser.device_id === 0x5678) return pa;
    } else {
      const ser = iommufd_ser.read(ram, pa);
      const hwpt = iommufd_hwpt_ser.read(ram, pa + iommufd_ser.sizeBytes);
      if (ser.hwpt_count !== 1 || ser.area_count > 1 || hwpt.reserved !== 0) continue;
      if (hwpt.token === HWPT_TOKEN || (hwpt.token === 0n && hwpt.flags === 3)) return pa;
    }
  }
  throw new Error(`no record of token ${token}`);
}
