import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { FieldType, Struct } from "../../abi/struct.ts";
import * as uapi from "../../abi/uapi/vfio.ts";
import { ByteWords } from "../../abi/words.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { MIB } from "../../base/units.ts";
import * as iommufd from "../../host/iommufd.ts";
import * as vfio from "../../host/vfio.ts";
import { TestKernel } from "./test-rig.ts";

const CONFIG = uapi.VFIO_PCI_CONFIG_REGION_INDEX;
const REGION = 2 ** uapi.VFIO_PCI_OFFSET_SHIFT;
const COMMAND = 4;
const BAR0 = 0x10;
const MSI_ENABLE = 1 << 16;

function failsWith(code: string, message: RegExp = /./) {
  return (error: unknown) => {
    assert.ok(error instanceof KernelError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
}

/** Makes a call with the fields given, all others 0, and values after them. @returns the structure afterwards */
function call<F extends Record<string, FieldType<unknown>>>(
  kernel: TestKernel,
  fd: number,
  request: number,
  layout: Struct<F>,
  fields: Readonly<Record<string, number>>,
  values: readonly number[] = [],
) {
  const bytes = new Uint8Array(layout.sizeBytes + 4 * values.length);
  const words = new ByteWords(bytes);
  words.store32(0, bytes.length);
  for (const [name, value] of Object.entries(fields))
    layout.fields[name].write(words, layout.offset[name], value);
  values.forEach((value, i) => {
    words.store32(layout.sizeBytes + 4 * i, value >>> 0);
  });
  kernel.host.ioctl(fd, request, { bytes });
  return layout.read(words, 0);
}

/** A bound device, and its config space. */
function setUp(index = 1) {
  const kernel = TestKernel.cold();
  const { host } = kernel;
  const ctx = kernel.openIommufd();
  const fd = kernel.openDevice(index);
  const deviceId = vfio.bindIommufd(host, fd, ctx);
  const config = vfio.openRegion(host, fd, CONFIG);
  const model = kernel.hardware.devices[index];
  return { kernel, host, ctx, fd, deviceId, config, model, device: kernel.device(index) };
}

/** Offset of the MSI capability, by the list that a user walks. */
function msiOffset(config: vfio.RegionAccess): number {
  for (let at = config.read32(0x34) & 0xfc; at !== 0; ) {
    const word = config.read32(at);
    if ((word & 0xff) === 5) return at;
    at = (word >>> 8) & 0xfc;
  }
  throw new Error("no MSI");
}

test("every function but bridges has a node; without no-IOMMU mode only translated ones", () => {
  const nodes = (kernel: TestKernel) => kernel.vfio.devices.map(({ node, name }) => [node, name]);
  const translated = [
    ["vfio/devices/vfio0", "0000:00:01.0"],
    ["vfio/devices/vfio1", "0000:01:00.0"],
  ];
  assert.deepEqual(nodes(TestKernel.cold()), [
    ...translated,
    ["vfio/devices/noiommu-vfio2", "0001:00:01.0"],
  ]);
  assert.deepEqual(nodes(TestKernel.cold({ enableUnsafeNoiommuMode: false })), translated);
});

test("a file can do nothing (EINVAL) before it has bound its device", () => {
  const kernel = TestKernel.cold();
  const fd = kernel.openDevice(0);
  const { host } = kernel;
  assert.throws(() => vfio.deviceInfo(host, fd), failsWith("EINVAL", /not bound/));
  assert.throws(() => vfio.reset(host, fd), failsWith("EINVAL"));
  assert.throws(() => vfio.attach(host, fd, 1), failsWith("EINVAL"));
  assert.throws(() => host.ioctl(fd, 0, { bytes: new Uint8Array(8) }), failsWith("EINVAL"));
  assert.throws(() => host.pread(fd, new Uint8Array(4), 0), failsWith("EINVAL"));
  assert.throws(() => host.pwrite(fd, new Uint8Array(4), 0), failsWith("EINVAL"));
  kernel.close(fd);
});

test("BIND_IOMMUFD fails as Linux does, and changes nothing", () => {
  const { kernel, host, ctx, fd, device } = setUp();
  const other = kernel.openDevice(0);
  const layout = uapi.vfio_device_bind_iommufd;
  const bind = (file: number, fields: Readonly<Record<string, number>>) =>
    call(kernel, file, uapi.VFIO_DEVICE_BIND_IOMMUFD, layout, fields);
  const usage = kernel.usage();
  assert.throws(() => bind(other, { argsz: 15 }), failsWith("EINVAL"));
  assert.throws(() => bind(other, { argsz: 4096 }), failsWith("EFAULT"));
  assert.throws(() => bind(other, { iommufd: -1 }), failsWith("EINVAL"));
  assert.throws(() => bind(other, { iommufd: ctx, flags: 1 }), failsWith("EINVAL"));
  assert.throws(() => bind(other, { iommufd: 1234 }), failsWith("EBADF"));
  assert.throws(() => bind(other, { iommufd: fd }), failsWith("EBADFD"));
  assert.throws(() => bind(fd, { iommufd: ctx }), failsWith("EINVAL", /already/));
  const second = kernel.openDevice(1);
  assert.throws(() => bind(second, { iommufd: ctx }), failsWith("EINVAL", /bound already/));
  assert.deepEqual(kernel.usage(), usage);
  assert.ok(device.isBound);
  kernel.close(fd);
  vfio.bindIommufd(host, second, ctx);
});

test("binding and closing reset the device, stop its DMA and its interrupts", () => {
  const { kernel, host, ctx, fd, config, model, device } = setUp();
  const memory = kernel.memory(MIB);
  const ioasId = iommufd.ioasAlloc(host, ctx);
  iommufd.ioasMapFile(host, ctx, {
    ioasId,
    fileFd: memory,
    start: 0,
    lengthBytes: MIB,
    iova: 0,
    writable: true,
  });
  assert.equal(config.read32(COMMAND) & 6, 2, "memory space on, bus mastering off");
  vfio.attach(host, fd, ioasId);
  assert.equal(model.dmaWrite(0, 1), false);
  config.write32(COMMAND, 6);
  assert.ok(model.dmaWrite(0, 1));
  vfio.setMsiEventfd(host, fd, kernel.eventfd());
  assert.equal(kernel.vectors.usedCount, 1);
  const { resets } = model;
  kernel.close(fd);
  assert.equal(model.resets, resets + 1);
  assert.equal(model.dmaWrite(0, 1), false);
  assert.equal(device.pci.configRead(COMMAND, 2) & 4, 0);
  assert.equal(kernel.vectors.usedCount, 0);
  assert.equal(kernel.iommu.domainIdCount, 0);
  model.raiseInterrupt();
  assert.equal(kernel.vfio.deliverInterrupts(), false);
  // A function that somebody left with bus mastering on starts without.
  device.pci.setBusMaster(true);
  const again = kernel.openDevice(1);
  vfio.bindIommufd(host, again, ctx);
  assert.equal(device.pci.configRead(COMMAND, 2) & 4, 0);
  assert.equal(model.resets, resets + 2);
});

test("a failure at each step of bind and of enabling MSI leaves the device free", () => {
  const { kernel, host, ctx, fd, device } = setUp();
  kernel.close(fd);
  const usage = kernel.usage();
  const run = () => {
    const file = kernel.openDevice(1);
    try {
      vfio.bindIommufd(host, file, ctx);
      vfio.setMsiEventfd(host, file, kernel.eventfd());
    } finally {
      kernel.close(file);
    }
  };
  const points = kernel.faults.record(run);
  assert.ok(points.includes("vfio.bind:enable") && points.includes("vfio.msi:alloc"));
  for (let i = 0; i < points.length; i++) {
    kernel.faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
    assert.throws(run, failsWith("ENOMEM"), points[i]);
    assert.ok(kernel.faults.disarm());
    assert.equal(device.isBound, false);
    assert.deepEqual(kernel.usage(), usage, points[i]);
  }
});

test("attach and detach fail with EINVAL for flags and PASIDs; detach is repeatable", () => {
  const { kernel, host, ctx, fd } = setUp();
  const pt_id = iommufd.ioasAlloc(host, ctx);
  const attach = (fields: Readonly<Record<string, number>>) =>
    call(
      kernel,
      fd,
      uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      uapi.vfio_device_attach_iommufd_pt,
      fields,
    );
  const detach = (fields: Readonly<Record<string, number>>) =>
    call(
      kernel,
      fd,
      uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
      uapi.vfio_device_detach_iommufd_pt,
      fields,
    );
  for (const change of [attach, detach]) {
    assert.throws(() => change({ flags: 2 }), failsWith("EINVAL"));
    assert.throws(() => change({ argsz: 7 }), failsWith("EINVAL"));
  }
  const { VFIO_DEVICE_ATTACH_PASID: flags } = uapi;
  assert.throws(() => attach({ flags, pt_id, argsz: 15 }), failsWith("EINVAL", /no room/));
  assert.throws(() => attach({ flags, pt_id }), failsWith("EINVAL", /PASIDs/));
  assert.throws(() => attach({ flags, pt_id: 99 }), failsWith("ENOENT"));
  assert.throws(() => detach({ flags, argsz: 11 }), failsWith("EINVAL"));
  detach({ flags });
  vfio.detach(host, fd);
  vfio.detach(host, fd);
});

test("GET_INFO, GET_REGION_INFO, GET_IRQ_INFO describe the function", () => {
  const { kernel, host, fd } = setUp();
  assert.deepEqual(vfio.deviceInfo(host, fd), { canReset: true, regionCount: 9, irqCount: 5 });
  const sizes = Array.from({ length: 8 }, (_, i) => vfio.regionInfo(host, fd, i).sizeBytes);
  assert.deepEqual(sizes, [4096, 0, 16, 0, 0, 0, 0, 4096]);
  assert.deepEqual(vfio.regionInfo(host, fd, 2), {
    sizeBytes: 16,
    fileOffset: 2 * REGION,
    flags: 3,
  });
  assert.equal(vfio.regionInfo(host, fd, 1).flags, 0);
  assert.throws(() => vfio.regionInfo(host, fd, 8), failsWith("EINVAL"));
  assert.throws(() => vfio.regionInfo(host, fd, 2 ** 32 - 1), failsWith("EINVAL"));
  const counts = Array.from({ length: 5 }, (_, i) => vfio.irqInfo(host, fd, i).count);
  assert.deepEqual(counts, [0, 1, 0, 0, 0]);
  const flags = Array.from({ length: 5 }, (_, i) => vfio.irqInfo(host, fd, i).flags);
  assert.deepEqual(flags, [0b0111, 0b1001, 0b1001, 0b1001, 0b1001], "as Linux has them");
  assert.throws(() => vfio.irqInfo(host, fd, 5), failsWith("EINVAL"));
  assert.throws(
    () => call(kernel, fd, uapi.VFIO_DEVICE_GET_INFO, uapi.vfio_device_info, { argsz: 15 }),
    failsWith("EINVAL"),
  );
  assert.throws(() => host.ioctl(fd, 0x3b00, { bytes: new Uint8Array(8) }), failsWith("ENOTTY"));
});

test("BARs are accessed in aligned pieces, cut at the end, and only with memory space on", () => {
  const { host, fd, config, model } = setUp();
  const bytes = Uint8Array.from({ length: 11 }, (_, i) => i + 1);
  assert.equal(host.pwrite(fd, bytes, 3), 11);
  assert.deepEqual([...model.registers.subarray(2, 15)], [0, ...bytes, 0]);
  const back = new Uint8Array(11);
  assert.equal(host.pread(fd, back, 3), 11);
  assert.deepEqual(back, bytes);
  assert.equal(host.pread(fd, new Uint8Array(16), 4090), 6);
  assert.throws(() => host.pread(fd, new Uint8Array(1), 4096), failsWith("EINVAL"));
  assert.throws(() => host.pread(fd, new Uint8Array(1), REGION), failsWith("EINVAL"));
  assert.throws(() => host.pread(fd, new Uint8Array(1), 6 * REGION), failsWith("EINVAL"));
  assert.throws(() => host.pread(fd, new Uint8Array(1), 9 * REGION), failsWith("EINVAL"));
  for (const offset of [-1, 0.5, Number.NaN, 2 ** 60])
    assert.throws(() => host.pread(fd, new Uint8Array(1), offset), failsWith("EINVAL"));
  assert.equal(host.pread(fd, new Uint8Array(0), 4096), 0);
  config.write32(COMMAND, 0);
  assert.throws(() => host.pread(fd, back, 3), failsWith("EIO"));
  assert.throws(() => host.pwrite(fd, back, 3), failsWith("EIO"));
});

test("config space: BARs are the user's own copy, MSI and identification are not writable", () => {
  const { host, fd, config, device, model } = setUp();
  const [bar] = device.pci.bars;
  const real = config.read32(BAR0);
  assert.equal((real & ~0xf) >>> 0, bar.address % 2 ** 32);
  config.write32(BAR0, 0xffffffff);
  config.write32(BAR0 + 4, 0xffffffff);
  assert.equal(config.read32(BAR0), 0xfffff004, "4 KiB, 64-bit");
  assert.equal(config.read32(BAR0 + 4), 0xffffffff);
  config.write32(BAR0 + 8, 0xffffffff);
  assert.equal(config.read32(BAR0 + 8), 0xfffffff0, "16 bytes, 32-bit");
  config.write32(BAR0 + 12, 0xffffffff);
  assert.equal(config.read32(BAR0 + 12), 0, "there is none");
  config.write32(BAR0, 0xdead0000);
  assert.equal(config.read32(BAR0), 0xdead0004);
  assert.equal(host.pwrite(fd, Uint8Array.of(0xbe), CONFIG * REGION + BAR0 + 2), 1);
  assert.equal(config.read32(BAR0), 0xdebe0004);
  vfio.openRegion(host, fd, 0).write32(0, 0x1234);
  assert.equal(model.registers[0], 0x34, "the real BAR has not moved");

  const identification = config.read32(0);
  config.write32(0, 0);
  assert.equal(config.read32(0), identification);
  const msi = msiOffset(config);
  for (let offset = 0; offset < 20; offset += 4) config.write32(msi + offset, 0xffffffff);
  assert.equal(config.read32(msi) & MSI_ENABLE, 0);
  assert.equal(config.read32(msi + 4), 0);
  config.write32(0x3c, 0x5b);
  assert.equal(config.read32(0x3c) & 0xff, 0x5b);
  config.write32(COMMAND, 0xffffffff);
  assert.equal(device.pci.configRead(COMMAND, 2) & 7, 6);
  assert.equal(config.read32(COMMAND) & 0x400, 0x400, "INTx disable is kept, not used");
  assert.equal(device.pci.configRead(COMMAND, 2) & 0x400, 0);

  const end = CONFIG * REGION + 4096;
  assert.equal(host.pread(fd, new Uint8Array(4), end - 4), 4);
  assert.throws(() => host.pread(fd, new Uint8Array(4), end - 3), failsWith("EFAULT"));
  assert.throws(() => host.pwrite(fd, new Uint8Array(4), end), failsWith("EFAULT"));
});

test("RESET and function level reset by config space keep interrupts, BARs and bus mastering", () => {
  const { kernel, host, fd, config, model } = setUp();
  const event = kernel.eventfd();
  vfio.setMsiEventfd(host, fd, event);
  config.write32(COMMAND, 6);
  const bar0 = vfio.openRegion(host, fd, 0);
  const flr = () => {
    for (let at = config.read32(0x34) & 0xfc; at !== 0; at = (config.read32(at) >>> 8) & 0xfc)
      if ((config.read32(at) & 0xff) === 0x10) config.write32(at + 8, 0x8000);
  };
  for (const reset of [() => vfio.reset(host, fd), flr]) {
    const { resets } = model;
    bar0.write32(0, 7);
    reset();
    assert.equal(model.resets, resets + 1);
    assert.equal(bar0.read32(0), 0);
    assert.equal(config.read32(COMMAND) & 6, 6);
    model.raiseInterrupt();
    kernel.vfio.deliverInterrupts();
    assert.equal(kernel.takeEvents(event), 1);
  }
});

test("MSI reaches the eventfd; without one it stays pending until there is", () => {
  const { kernel, host, fd, config, model, device } = setUp();
  const event = kernel.eventfd();
  config.write32(COMMAND, 6);
  model.raiseInterrupt();
  assert.equal(kernel.vfio.deliverInterrupts(), false, "MSI is off");
  vfio.setMsiEventfd(host, fd, event);
  assert.equal(kernel.takeEvents(event), 0, "what was before is nobody's");
  assert.notEqual(config.read32(msiOffset(config)) & MSI_ENABLE, 0);
  model.raiseInterrupt();
  assert.equal(kernel.takeEvents(event), 0);
  assert.equal(kernel.vfio.deliverInterrupts(), true);
  assert.equal(kernel.takeEvents(event), 1);
  assert.equal(kernel.vfio.deliverInterrupts(), false);
  vfio.setMsiEventfd(host, fd, -1);
  model.raiseInterrupt();
  assert.equal(kernel.vfio.deliverInterrupts(), false);
  const other = kernel.eventfd();
  const { msiVector } = device;
  vfio.setMsiEventfd(host, fd, other);
  assert.equal(kernel.takeEvents(other), 1);
  assert.equal(device.msiVector, msiVector);
  // The device holds the eventfd.
  kernel.close(other);
  model.raiseInterrupt();
  assert.equal(kernel.vfio.deliverInterrupts(), true);
  vfio.disableMsi(host, fd);
  assert.equal(kernel.vectors.usedCount, 0);
  assert.equal(config.read32(msiOffset(config)) & MSI_ENABLE, 0);
});

test("SET_IRQS fails as Linux does, and changes nothing", () => {
  const { kernel, host, ctx, fd } = setUp();
  const event = kernel.eventfd();
  const { VFIO_IRQ_SET_DATA_NONE: none, VFIO_IRQ_SET_DATA_BOOL: bool } = uapi;
  const { VFIO_IRQ_SET_DATA_EVENTFD: eventfd, VFIO_IRQ_SET_ACTION_TRIGGER: trigger } = uapi;
  const set = (fields: Readonly<Record<string, number>>, values: readonly number[] = []) =>
    call(
      kernel,
      fd,
      uapi.VFIO_DEVICE_SET_IRQS,
      uapi.vfio_irq_set,
      { index: 1, count: 1, flags: eventfd | trigger, ...fields },
      values,
    );
  assert.throws(() => set({ index: 0 }, [event]), failsWith("EINVAL"), "no INTx");
  assert.throws(() => set({ index: 2 }, [event]), failsWith("EINVAL"), "no MSI-X");
  assert.throws(() => set({ index: 5 }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ start: 1 }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ count: 2 }, [event, event]), failsWith("EINVAL"));
  assert.throws(() => set({ count: 2 ** 32 - 1 }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ flags: eventfd | trigger | 64 }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ flags: trigger }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ flags: eventfd | bool | trigger }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ argsz: 20 }, [event]), failsWith("EINVAL"));
  assert.throws(() => set({ argsz: 24 }), failsWith("EFAULT"));
  assert.throws(() => set({ flags: eventfd | 8 }, [event]), failsWith("ENOTTY"), "mask");
  assert.throws(() => set({ flags: eventfd | 16 }, [event]), failsWith("ENOTTY"), "unmask");
  assert.throws(() => set({ flags: eventfd }, [event]), failsWith("ENOTTY"), "no action");
  assert.throws(() => set({}, [999]), failsWith("EBADF"));
  assert.throws(() => set({}, [ctx]), failsWith("EINVAL", /not an eventfd/));
  assert.throws(() => set({ flags: none | trigger }), failsWith("EINVAL"), "not enabled");
  assert.throws(() => set({ flags: none | trigger, count: 0 }), failsWith("EINVAL"), "nor so");
  assert.throws(() => set({ count: 0 }), failsWith("ERANGE"));
  assert.equal(kernel.vectors.usedCount, 0);
  set({}, [event]);
  set({ flags: none | trigger });
  set({ flags: bool | trigger }, [1]);
  set({ flags: bool | trigger }, [0]);
  assert.equal(kernel.takeEvents(event), 2, "loopback");
  set({ flags: none | trigger, count: 0 });
  assert.equal(kernel.vectors.usedCount, 0);
  assert.throws(() => vfio.setMsiEventfd(host, fd, 999), failsWith("EBADF"));
  assert.equal(kernel.vectors.usedCount, 0);
});

test("all vectors in use: ENOSPC, and nothing is enabled", () => {
  const { kernel, host, fd, device } = setUp();
  for (let i = 32; i < 256; i++) kernel.vectors.alloc();
  assert.throws(() => vfio.setMsiEventfd(host, fd, kernel.eventfd()), failsWith("ENOSPC"));
  assert.equal(device.msiEnabled, false);
  kernel.vectors.free(77);
  vfio.setMsiEventfd(host, fd, kernel.eventfd());
  assert.equal(device.msiVector, 77);
});

test("without IOMMU: DMA goes to physical addresses, and stops with detach", () => {
  const { kernel, host, ctx, fd, config, model } = setUp(2);
  const memory = kernel.memory(MIB);
  const ioasId = iommufd.ioasAlloc(host, ctx);
  iommufd.ioasMapFile(host, ctx, {
    ioasId,
    fileFd: memory,
    start: 0,
    lengthBytes: MIB,
    iova: 0x100000,
    writable: true,
  });
  vfio.attach(host, fd, ioasId);
  config.write32(COMMAND, 6);
  const { physical } = iommufd.noiommuGetPa(host, ctx, ioasId, 0x103000);
  assert.ok(model.dmaWrite(physical, 99));
  assert.equal(kernel.loadMapped(memory, 0x3000), 99);
  vfio.detach(host, fd);
  assert.equal(model.dmaWrite(physical, 98), false);
});

test("garbage arguments and offsets get an errno", () => {
  const { kernel, ctx, fd } = setUp();
  const requests = [107, 108, 109, 110, 111, 118, 119, 120, 0xf2, 0, 121].map((n) => 0x3b00 + n);
  const word = fc.oneof(
    fc.constantFrom(0, 1, 2, 3, 4, 16, 24, 32, ctx, fd, 0x21, 0x24, 2 ** 32 - 1),
    fc.nat(2 ** 32 - 1),
  );
  fc.assert(
    fc.property(
      fc.constantFrom(...requests),
      fc.array(word, { maxLength: 9 }),
      fc.boolean(),
      (request, words, hasSize) => {
        const bytes = new Uint8Array(4 * words.length);
        new Uint32Array(bytes.buffer).set(words);
        if (hasSize && words.length > 0) new Uint32Array(bytes.buffer)[0] = bytes.length;
        try {
          kernel.host.ioctl(fd, request, { bytes });
        } catch (error) {
          if (!isKernelError(error)) throw error;
        }
      },
    ),
    { numRuns: 2000 },
  );
  const offset = fc.oneof(
    fc.tuple(fc.nat(10), fc.nat(5000)).map(([index, at]) => index * REGION + at),
    fc.double(),
    fc.maxSafeInteger(),
  );
  fc.assert(
    fc.property(offset, fc.uint8Array({ maxLength: 20 }), fc.boolean(), (at, bytes, writes) => {
      try {
        const done = writes ? kernel.host.pwrite(fd, bytes, at) : kernel.host.pread(fd, bytes, at);
        assert.ok(done >= 0 && done <= bytes.length);
      } catch (error) {
        if (!isKernelError(error)) throw error;
      }
    }),
    { numRuns: 2000 },
  );
  for (const bad of [null, undefined, {}, { bytes: 5 }])
    for (const request of requests.slice(0, 8))
      assert.throws(() => {
        kernel.host.ioctl(fd, request, bad as never);
        // RESET takes no argument.
        if (request === uapi.VFIO_DEVICE_RESET) throw new KernelError("EFAULT", "reset", "none");
      }, failsWith("EFAULT"));
  kernel.close(fd, ctx);
  assert.equal(kernel.vectors.usedCount, 0);
});
