import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { FieldType, Struct } from "../../abi/struct.ts";
import * as uapi from "../../abi/uapi/iommufd.ts";
import { CAP_REG, ECAP_REG } from "../../abi/vtd/registers.ts";
import { ByteWords } from "../../abi/words.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import * as iommufd from "../../host/iommufd.ts";
import * as vfio from "../../host/vfio.ts";
import { SecondStageDomain } from "../iommu/second-stage-domain.ts";
import { TestKernel } from "../vfio/test-rig.ts";
import type { IommufdFile } from "./file.ts";

const BYTES = MIB;

function failsWith(code: string, message: RegExp = /./) {
  return (error: unknown) => {
    assert.ok(error instanceof KernelError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
}

type Sized = Record<string, FieldType<unknown>>;

/** Makes a call with the fields given and all others 0. @returns the structure afterwards */
function call<F extends Sized>(
  kernel: TestKernel,
  fd: number,
  request: number,
  layout: Struct<F>,
  fields: Readonly<Record<string, number | bigint>>,
  buffers: { pointerOffset: number; bytes: Uint8Array }[] = [],
) {
  const bytes = new Uint8Array(layout.sizeBytes);
  const words = new ByteWords(bytes);
  words.store32(0, layout.sizeBytes);
  for (const [name, value] of Object.entries(fields))
    layout.fields[name].write(words, layout.offset[name], value);
  kernel.host.ioctl(fd, request, { bytes, buffers });
  return layout.read(words, 0);
}

/** A context with an IOAS, memory, and a bound device that is not attached. */
function setUp(index = 0) {
  const kernel = TestKernel.cold();
  const { host } = kernel;
  const ctx = kernel.openIommufd();
  const device = kernel.openDevice(index);
  const deviceId = vfio.bindIommufd(host, device, ctx);
  const ioasId = iommufd.ioasAlloc(host, ctx);
  const memory = kernel.memory(BYTES);
  const map = (fields: Partial<iommufd.FileMapping> = {}) =>
    iommufd.ioasMapFile(host, ctx, {
      ioasId,
      fileFd: memory,
      start: 0,
      lengthBytes: BYTES,
      writable: true,
      ...fields,
    });
  const unmap = (iova: number, lengthBytes: number) =>
    iommufd.ioasUnmap(host, ctx, { ioasId, iova, lengthBytes });
  return { kernel, host, ctx, device, deviceId, ioasId, memory, map, unmap };
}

const MAP_FLAGS = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_FIXED_IOVA;

test("ioctl() fails as the general format says: ENOTTY, EFAULT, EINVAL, E2BIG", () => {
  const { kernel, ctx } = setUp();
  const ioctl = (request: number, bytes: Uint8Array) => kernel.host.ioctl(ctx, request, { bytes });
  assert.throws(() => ioctl(0x3b85, new Uint8Array(40)), failsWith("ENOTTY"));
  assert.throws(() => ioctl(uapi.IOMMU_DESTROY + 65536, new Uint8Array(40)), failsWith("ENOTTY"));
  assert.throws(() => ioctl(uapi.IOMMU_DESTROY, new Uint8Array(3)), failsWith("EFAULT"));
  const short = new Uint8Array(8);
  short[0] = 7;
  assert.throws(() => ioctl(uapi.IOMMU_DESTROY, short), failsWith("EINVAL"));
  const long = new Uint8Array(16);
  long[0] = 16;
  long[12] = 1;
  assert.throws(() => ioctl(uapi.IOMMU_DESTROY, long), failsWith("E2BIG"));
  long[12] = 0;
  assert.throws(() => ioctl(uapi.IOMMU_DESTROY, long), failsWith("ENOENT"));
});

test("ids are the lowest that are free", () => {
  const { host, ctx, ioasId } = setUp();
  const second = iommufd.ioasAlloc(host, ctx);
  assert.deepEqual([ioasId, second], [2, 3]);
  iommufd.destroy(host, ctx, ioasId);
  assert.equal(iommufd.ioasAlloc(host, ctx), 2);
  assert.equal(iommufd.ioasAlloc(host, ctx), 4);
});

test("IOAS_ALLOC fails with EOPNOTSUPP on flags", () => {
  const { kernel, ctx } = setUp();
  assert.throws(
    () => call(kernel, ctx, uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, { flags: 1 }),
    failsWith("EOPNOTSUPP"),
  );
});

test("DESTROY fails with ENOENT for what is not there and EBUSY for what is used", () => {
  const { kernel, host, ctx, device, deviceId, ioasId } = setUp();
  assert.throws(() => iommufd.destroy(host, ctx, 0), failsWith("ENOENT"));
  assert.throws(() => iommufd.destroy(host, ctx, 99), failsWith("ENOENT"));
  assert.throws(() => iommufd.destroy(host, ctx, deviceId), failsWith("EBUSY", /device/));
  const hwptId = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  assert.throws(() => iommufd.destroy(host, ctx, ioasId), failsWith("EBUSY", /ioas/));
  vfio.attach(host, device, hwptId);
  assert.throws(() => iommufd.destroy(host, ctx, hwptId), failsWith("EBUSY", /hwpt/));
  vfio.detach(host, device);
  iommufd.destroy(host, ctx, hwptId);
  iommufd.destroy(host, ctx, ioasId);
  assert.equal(kernel.iommu.domainCount, 0);
});

test("MAP_FILE fails as Linux does, and changes nothing", () => {
  const { kernel, host, ctx, device, ioasId, memory, map, unmap } = setUp();
  const raw = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, {
      flags: MAP_FLAGS,
      ioas_id: ioasId,
      fd: memory,
      length: PAGE_SIZE,
      ...fields,
    });
  const usage = kernel.usage();
  assert.throws(() => raw({ flags: 8 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => raw({ flags: uapi.IOMMU_IOAS_MAP_FIXED_IOVA }), failsWith("EINVAL"));
  assert.throws(() => raw({ ioas_id: 1 }), failsWith("ENOENT"));
  assert.throws(() => raw({ ioas_id: 77 }), failsWith("ENOENT"));
  assert.throws(() => raw({ length: 0 }), failsWith("EINVAL"));
  assert.throws(() => raw({ fd: -1 }), failsWith("EBADF"));
  assert.throws(() => raw({ fd: 1000 }), failsWith("EBADF"));
  assert.throws(() => raw({ fd: ctx }), failsWith("EINVAL"), "an iommufd cannot back DMA");
  assert.throws(() => raw({ start: BYTES }), failsWith("EINVAL"), "past the file's end");
  assert.throws(() => raw({ start: 2 ** 52, length: 2 ** 53 - 4096 }), failsWith("EOVERFLOW"));
  assert.throws(() => raw({ iova: 2 ** 52 }), failsWith("EOVERFLOW"));
  assert.throws(() => raw({ iova: 2 ** 52 - PAGE_SIZE, length: 8192 }), failsWith("EOVERFLOW"));
  assert.deepEqual(kernel.usage(), usage);

  const iova = map({ iova: 0x10000 });
  assert.equal(iova, 0x10000);
  assert.throws(() => map({ iova: 0x10000 + BYTES - 1, lengthBytes: 1 }), failsWith("EEXIST"));
  unmap(0x10000, BYTES);
  vfio.attach(host, device, ioasId);
  assert.throws(() => map({ iova: 1 }), failsWith("EINVAL"), "pages, from now on");
  assert.throws(() => map({ iova: 0, lengthBytes: 100 }), failsWith("EINVAL"));
  assert.throws(() => map({ iova: 0, start: 512, lengthBytes: PAGE_SIZE }), failsWith("EINVAL"));
  assert.throws(
    () => map({ iova: 0xfee00000, lengthBytes: PAGE_SIZE }),
    failsWith("EINVAL", /reserved/),
  );
  assert.throws(() => map({ iova: 2 ** 48, lengthBytes: PAGE_SIZE }), failsWith("EINVAL"));
});

test("MAP_FILE finds room: never IOVA 0, aligned like the file offset, around what is reserved", () => {
  const { kernel, host, ctx, device, ioasId, map } = setUp();
  vfio.attach(host, device, ioasId);
  assert.equal(map(), BYTES, "aligned to its length");
  assert.equal(map({ start: 0x3000, lengthBytes: PAGE_SIZE }), 0x1000);
  assert.equal(map({ start: 0x40000, lengthBytes: 0x20000 }), 0x20000);
  iommufd.ioasAllowIovas(host, ctx, ioasId, [
    { start: 0xfe000000, last: 0xfedfffff },
    { start: 0x1_0000_0000, last: 0x1_0000_ffff },
  ]);
  for (let i = 0; i < 14; i++) assert.equal(map(), 0xfe000000 + i * BYTES);
  assert.throws(() => map(), failsWith("ENOSPC"));
  assert.equal(map({ start: 0, lengthBytes: 0x10000 }), 0x1_0000_0000);
  assert.throws(() => map({ lengthBytes: PAGE_SIZE }), failsWith("ENOSPC"));
  assert.equal(map({ iova: 0x5000000 }), 0x5000000, "a fixed IOVA may be anywhere");
  assert.equal(kernel.iommu.domainCount, 1);
});

test("ALLOW_IOVAS and IOVA_RANGES fail as Linux does", () => {
  const { kernel, host, ctx, device, ioasId, map } = setUp();
  const allow = (ranges: uapi.IommuIovaRange[]) =>
    iommufd.ioasAllowIovas(host, ctx, ioasId, ranges);
  const last = 2 ** 52 - 1;
  assert.deepEqual(iommufd.iovaRanges(host, ctx, ioasId), {
    ranges: [{ start: 0, last }],
    alignment: 1,
  });
  assert.throws(() => allow([{ start: 5, last: 5 }]), failsWith("EINVAL"));
  assert.throws(() => allow([{ start: 6, last: 5 }]), failsWith("EINVAL"));
  assert.throws(
    () =>
      allow([
        { start: 0, last: 10 },
        { start: 10, last: 20 },
      ]),
    failsWith("EINVAL"),
  );
  vfio.attach(host, device, ioasId);
  assert.deepEqual(iommufd.iovaRanges(host, ctx, ioasId), {
    ranges: [
      { start: 0, last: 0xfedfffff },
      { start: 0xfef00000, last: 2 ** 48 - 1 },
    ],
    alignment: PAGE_SIZE,
  });
  assert.throws(() => allow([{ start: 0xfed00000, last: 0xfee00000 }]), failsWith("EADDRINUSE"));
  const layout = uapi.iommu_ioas_iova_ranges;
  const ranges = (fields: Readonly<Record<string, number>>, size = 64) => {
    const pointerOffset = layout.offset.allowed_iovas;
    const buffers = [{ pointerOffset, bytes: new Uint8Array(size) }];
    const all = { ioas_id: ioasId, num_iovas: 4, ...fields };
    return call(kernel, ctx, uapi.IOMMU_IOAS_IOVA_RANGES, layout, all, buffers);
  };
  assert.throws(() => ranges({ __reserved: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => ranges({ ioas_id: 50 }), failsWith("ENOENT"));
  assert.throws(() => ranges({ num_iovas: 1 }), failsWith("EMSGSIZE"));
  assert.throws(() => ranges({}, 16), failsWith("EFAULT"));
  const allowLayout = uapi.iommu_ioas_allow_iovas;
  const allowRaw = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_IOAS_ALLOW_IOVAS, allowLayout, { ioas_id: ioasId, ...fields });
  assert.throws(() => allowRaw({ __reserved: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => allowRaw({ ioas_id: 1 }), failsWith("ENOENT"));
  assert.throws(() => allowRaw({ num_iovas: 2 ** 32 - 1 }), failsWith("EFAULT"));
  // Nothing may become reserved in an allowed range.
  vfio.detach(host, device);
  allow([{ start: 0xfe000000, last: 0xffffffff }]);
  assert.throws(() => vfio.attach(host, device, ioasId), failsWith("EADDRINUSE"));
  allow([]);
  map({ iova: 0xfee00000, lengthBytes: PAGE_SIZE });
  assert.throws(() => vfio.attach(host, device, ioasId), failsWith("EADDRINUSE", /0xfee00000/));
  assert.equal(kernel.iommu.domainCount, 0);
  assert.equal(kernel.iommu.domainIdCount, 0);
});

test("UNMAP fails with ENOENT for nothing and for parts of areas, EINVAL for no bytes, EOVERFLOW", () => {
  const { kernel, ctx, ioasId, map, unmap } = setUp();
  const raw = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, {
      ioas_id: ioasId,
      ...fields,
    });
  assert.throws(() => unmap(0, PAGE_SIZE), failsWith("ENOENT"));
  assert.throws(() => unmap(0, 0), failsWith("EINVAL"));
  assert.throws(() => raw({ ioas_id: 1, length: 5 }), failsWith("ENOENT"));
  const all = new Uint8Array(24);
  const words = new ByteWords(all);
  const unmapAll = (iova: number) => {
    uapi.iommu_ioas_unmap.write(words, 0, { size: 24, ioas_id: ioasId, iova, length: 0 });
    words.storeBig64(16, 2n ** 64n - 1n);
    kernel.host.ioctl(ctx, uapi.IOMMU_IOAS_UNMAP, { bytes: all });
    return words.load64(16);
  };
  assert.equal(unmapAll(0), 0, "all of nothing is no error");
  assert.throws(() => unmapAll(1), failsWith("EOVERFLOW"));
  map({ iova: 0x100000 });
  map({ iova: 0x300000 });
  assert.throws(() => unmap(0x100000, BYTES - 1), failsWith("ENOENT"));
  assert.throws(() => unmap(0x100001, BYTES), failsWith("ENOENT"));
  assert.throws(() => unmap(0x100000, 0x200001), failsWith("ENOENT", /0x300000/));
  assert.throws(() => map({ iova: 0x100000 }), failsWith("EEXIST"), "it is still there");
  assert.equal(unmap(0, 0x1000000), 2 * BYTES);
  map({ iova: 0x100000 });
  assert.equal(unmapAll(0), BYTES);
});

test("COPY shows the same memory elsewhere, and fails as Linux does", () => {
  const { kernel, host, ctx, device, ioasId, memory, map, unmap } = setUp();
  map({ iova: 0x100000 });
  map({ iova: 0x200000, writable: false });
  const other = iommufd.ioasAlloc(host, ctx);
  vfio.attach(host, device, other);
  vfio.openRegion(host, device, 7).write32(4, 6);
  const copy = (fields: Partial<Parameters<typeof iommufd.ioasCopy>[2]> = {}) =>
    iommufd.ioasCopy(host, ctx, {
      fromIoasId: ioasId,
      fromIova: 0x100000,
      lengthBytes: PAGE_SIZE,
      toIoasId: other,
      toIova: 0,
      writable: true,
      ...fields,
    });
  assert.throws(() => copy({ fromIoasId: 99 }), failsWith("ENOENT"));
  assert.throws(() => copy({ toIoasId: 99 }), failsWith("ENOENT"));
  assert.throws(() => copy({ lengthBytes: 0 }), failsWith("EINVAL"));
  assert.throws(() => copy({ fromIova: 0x400000 }), failsWith("ENOENT"));
  assert.throws(() => copy({ fromIova: 0x2ff000, lengthBytes: 8192 }), failsWith("ENOENT"));
  assert.throws(() => copy({ fromIova: 0x200000 }), failsWith("EPERM"), "pinned for reading");
  assert.throws(() => copy({ fromIova: 2 ** 52 }), failsWith("EOVERFLOW"));
  assert.equal(copy({ fromIova: 0x1ff000, lengthBytes: 8192, writable: false }), 0);
  assert.equal(copy({ fromIova: 0x101000, toIova: 0x10000 }), 0x10000);
  // Each slice is an area of its own; the pages live as long as either IOAS shows them.
  unmap(0, 0x1000000);
  kernel.close(memory);
  const dma = kernel.hardware.devices[0];
  assert.ok(dma.dmaWrite(0x10000, 5));
  assert.equal(dma.dmaRead(0x10000), 5);
  assert.equal(dma.dmaRead(0x1000), 0);
  assert.equal(dma.dmaWrite(0x1000, 1), false, "copied for reading");
  iommufd.ioasUnmap(host, ctx, { ioasId: other, iova: 0, lengthBytes: PAGE_SIZE });
  assert.equal(dma.dmaRead(0), null);
  assert.equal(dma.dmaRead(0x1000), 0);
});

test("all HWPTs of an IOAS follow its map and unmap; a late one is filled", () => {
  const { kernel, host, ctx, device, deviceId, ioasId, memory, map, unmap } = setUp();
  const second = kernel.openDevice(1);
  const secondId = vfio.bindIommufd(host, second, ctx);
  map({ iova: 0 });
  const first = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  const late = iommufd.hwptAlloc(host, ctx, { deviceId: secondId, ptId: ioasId });
  vfio.attach(host, device, first);
  vfio.attach(host, second, late);
  for (const fd of [device, second]) vfio.openRegion(host, fd, 7).write32(4, 6);
  const [a, b] = kernel.hardware.devices;
  assert.ok(a.dmaWrite(0x100, 1) && b.dmaWrite(0x104, 2));
  assert.equal(kernel.loadMapped(memory, 0x104), 2);
  map({ iova: BYTES });
  assert.ok(a.dmaWrite(BYTES, 3) && b.dmaWrite(BYTES, 4));
  unmap(0, BYTES);
  assert.equal(a.dmaWrite(0, 5), false);
  assert.equal(b.dmaWrite(0, 5), false);
  kernel.close(device, second, ctx, memory);
  assert.equal(kernel.iommu.domainCount, 0);
});

test("devices attached to an IOAS share its automatic HWPT, which goes with the last", () => {
  const { kernel, host, ctx, device, deviceId, ioasId } = setUp();
  const second = kernel.openDevice(1);
  vfio.bindIommufd(host, second, ctx);
  const manual = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  const auto = vfio.attach(host, device, ioasId);
  assert.notEqual(auto, manual, "never one that was made by hand");
  assert.equal(vfio.attach(host, second, ioasId), auto);
  assert.equal(vfio.attach(host, device, ioasId), auto, "again: nothing happens");
  assert.throws(() => iommufd.destroy(host, ctx, auto), failsWith("EBUSY"));
  vfio.detach(host, device);
  assert.equal(kernel.iommu.domainCount, 2);
  vfio.attach(host, second, manual);
  assert.equal(kernel.iommu.domainCount, 1);
  assert.throws(() => iommufd.destroy(host, ctx, auto), failsWith("ENOENT"));
});

test("attach fails with ENOENT, EINVAL; devices with and without IOMMU do not share a HWPT", () => {
  const { kernel, host, ctx, device, deviceId, ioasId } = setUp();
  const noiommu = kernel.openDevice(2);
  const noiommuId = vfio.bindIommufd(host, noiommu, ctx);
  assert.throws(() => vfio.attach(host, device, 99), failsWith("ENOENT"));
  assert.throws(() => vfio.attach(host, device, deviceId), failsWith("EINVAL"));
  const a = vfio.attach(host, device, ioasId);
  const b = vfio.attach(host, noiommu, ioasId);
  assert.notEqual(a, b);
  assert.throws(() => vfio.attach(host, device, b), failsWith("EINVAL"));
  assert.throws(() => vfio.attach(host, noiommu, a), failsWith("EINVAL"));
  const explicit = iommufd.hwptAlloc(host, ctx, { deviceId: noiommuId, ptId: ioasId });
  assert.equal(vfio.attach(host, noiommu, explicit), explicit);
});

test("HWPT_ALLOC fails as Linux does", () => {
  const { kernel, ctx, deviceId, ioasId } = setUp();
  const alloc = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_HWPT_ALLOC, uapi.iommu_hwpt_alloc, {
      dev_id: deviceId,
      pt_id: ioasId,
      ...fields,
    });
  assert.throws(() => alloc({ __reserved: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => alloc({ data_len: 8 }), failsWith("EINVAL"));
  assert.throws(() => alloc({ data_type: 1 }), failsWith("EINVAL"));
  assert.throws(() => alloc({ dev_id: ioasId }), failsWith("ENOENT"));
  assert.throws(() => alloc({ pt_id: 99 }), failsWith("EINVAL"));
  assert.throws(() => alloc({ pt_id: deviceId }), failsWith("EINVAL"));
  assert.throws(() => alloc({ flags: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => alloc({ data_type: 1, data_len: 24 }), failsWith("EOPNOTSUPP"));
  const { out_hwpt_id } = alloc({});
  assert.throws(() => alloc({ pt_id: Number(out_hwpt_id) }), failsWith("EOPNOTSUPP"));
  assert.equal(kernel.iommu.domainCount, 1);
});

test("a HWPT that does not fit the areas fails with EADDRINUSE and leaves no domain", () => {
  const { kernel, host, ctx, deviceId, ioasId, map, unmap } = setUp();
  for (const area of [
    { iova: 0x800, lengthBytes: PAGE_SIZE },
    { iova: 0, lengthBytes: 100 },
    { iova: 0, start: 256, lengthBytes: PAGE_SIZE },
    { iova: 2 ** 48, lengthBytes: PAGE_SIZE },
  ]) {
    map(area);
    assert.throws(
      () => iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId }),
      failsWith("EADDRINUSE"),
    );
    unmap(0, 2 ** 50);
  }
  assert.equal(kernel.iommu.domainCount, 0);
  assert.equal(iommufd.iovaRanges(host, ctx, ioasId).alignment, 1);
});

test("a HWPT is marked once, with a token of its own", () => {
  const { kernel, host, ctx, deviceId, ioasId } = setUp();
  const a = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  const b = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  const mark = (id: number, token: bigint) => iommufd.hwptMarkPreserve(host, ctx, id, token);
  assert.throws(() => mark(99, 1n), failsWith("ENOENT"));
  assert.throws(() => mark(ioasId, 1n), failsWith("ENOENT"));
  mark(a, 2n ** 64n - 1n);
  assert.throws(() => mark(b, 2n ** 64n - 1n), failsWith("EADDRINUSE"));
  assert.throws(() => mark(a, 2n ** 64n - 1n), failsWith("EADDRINUSE"));
  assert.throws(() => mark(a, 2n), failsWith("EBUSY"));
  iommufd.destroy(host, ctx, a);
  mark(b, 2n ** 64n - 1n);
  assert.throws(() => iommufd.hwptRetrieve(host, ctx, 1n), failsWith("ENOENT"));
  kernel.close(ctx);
});

test("NOIOMMU_GET_PA fails as Linux does", () => {
  const { kernel, host, ctx, device, ioasId, memory, map } = setUp(2);
  const get = (fields: Readonly<Record<string, number>> = {}) =>
    call(kernel, ctx, uapi.IOMMU_IOAS_NOIOMMU_GET_PA, uapi.iommu_ioas_noiommu_get_pa, {
      ioas_id: ioasId,
      length: PAGE_SIZE,
      ...fields,
    });
  map({ iova: 0 });
  assert.throws(() => get(), failsWith("EOPNOTSUPP"), "no device without IOMMU is attached");
  vfio.attach(host, device, ioasId);
  assert.throws(() => get({ flags: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => get({ __reserved: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => get({ length: 0 }), failsWith("EINVAL"));
  assert.throws(() => get({ ioas_id: 99 }), failsWith("ENOENT"));
  assert.throws(() => get({ iova: BYTES }), failsWith("ENOENT"));
  const { out_phys, length } = get({ iova: 0x123, length: 16 });
  assert.equal(length, 16);
  assert.ok(kernel.hardware.endpoints[2] !== undefined);
  vfio.openRegion(host, device, 7).write32(4, 6);
  assert.ok(kernel.hardware.devices[2].dmaWrite(Number(out_phys), 0x11223344));
  const seen = new Uint8Array(4);
  kernel.hardware.ram.read(Number(out_phys), seen);
  assert.deepEqual([...seen], [0x44, 0x33, 0x22, 0x11]);
  assert.ok(memory >= 0);
});

test("OPTION of pin accounting has one value; it and unknown ones fail as Linux's do", () => {
  const { kernel, ctx } = setUp();
  const option = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_OPTION, uapi.iommu_option, { op: 1, ...fields });
  assert.equal(option({ option_id: 0 }).val64, 0);
  assert.throws(() => option({ option_id: 2 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => option({ __reserved: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => option({ option_id: 0, object_id: 1 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => option({ option_id: 0, op: 2 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => option({ option_id: 0, op: 0 }), failsWith("EBUSY"));
  const empty = kernel.openIommufd();
  const set = (val64: number) =>
    call(kernel, empty, uapi.IOMMU_OPTION, uapi.iommu_option, { op: 0, option_id: 0, val64 });
  set(0);
  assert.throws(() => set(1), failsWith("EOPNOTSUPP"));
  assert.throws(() => set(2), failsWith("EINVAL"));
});

test("OPTION HUGE_PAGES decides by which pages an IOAS is mapped, until a HWPT has areas mapped", () => {
  const { kernel, host, ctx, device, deviceId, ioasId, unmap } = setUp();
  const option = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_OPTION, uapi.iommu_option, {
      op: 1,
      option_id: 1,
      object_id: ioasId,
      ...fields,
    }).val64;
  const tables = () => {
    const hwptId = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
    vfio.attach(host, device, hwptId);
    const domain = kernel.iommu.domainOf(kernel.pci.functions[0]);
    assert.ok(domain instanceof SecondStageDomain);
    const { tableCount } = domain.table;
    assert.notEqual(domain.iovaToPhys(PAGE_SIZE), null);
    vfio.detach(host, device);
    iommufd.destroy(host, ctx, hwptId);
    return tableCount;
  };
  const fileFd = kernel.memory(4 * MIB);
  const map = (iova: number, lengthBytes: number) =>
    iommufd.ioasMapFile(host, ctx, { ioasId, fileFd, start: 0, lengthBytes, iova, writable: true });

  assert.throws(() => option({ object_id: deviceId }), failsWith("ENOENT"));
  assert.throws(() => option({ op: 0, val64: 2 }), failsWith("EINVAL"));
  assert.equal(option({}), 1);
  map(0, 4 * MIB);
  const largeTables = tables();
  // Areas alone are no obstacle, nor is a HWPT alone; both are.
  option({ op: 0, val64: 0 });
  assert.equal(option({}), 0);
  assert.equal(tables(), largeTables + 2, "two leaf tables more");
  option({ op: 0, val64: 1 });
  assert.equal(tables(), largeTables);
  const hwptId = iommufd.hwptAlloc(host, ctx, { deviceId, ptId: ioasId });
  assert.throws(() => option({ op: 0, val64: 0 }), failsWith("EINVAL", /mapped already/));
  assert.equal(option({}), 1);
  unmap(0, 4 * MIB);
  option({ op: 0, val64: 0 });
  map(0, 4 * MIB);
  option({ op: 0, val64: 1 });
  assert.throws(() => option({ op: 0, val64: 0 }), failsWith("EINVAL"));
  unmap(0, 4 * MIB);
  iommufd.destroy(host, ctx, hwptId);

  // An area that is no whole page: Linux says EADDRINUSE.
  map(0x10, 0x20);
  assert.throws(() => option({ op: 0, val64: 0 }), failsWith("EADDRINUSE"));
  assert.equal(option({}), 1);
});

test("GET_HW_INFO tells the unit's capability registers", () => {
  const { kernel, ctx, deviceId } = setUp();
  const bytes = new Uint8Array(32).fill(7);
  const layout = uapi.iommu_hw_info;
  const info = (fields: Readonly<Record<string, number>>) =>
    call(kernel, ctx, uapi.IOMMU_GET_HW_INFO, layout, { dev_id: deviceId, ...fields }, [
      { pointerOffset: layout.offset.data_uptr, bytes },
    ]);
  assert.throws(() => info({ flags: 2 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => info({ __reserved1: 2 }), failsWith("EOPNOTSUPP"));
  assert.throws(() => info({ dev_id: 9 }), failsWith("ENOENT"));
  assert.throws(() => info({ data_len: 33 }), failsWith("EFAULT"));
  const { IOMMU_HW_INFO_FLAG_INPUT_TYPE: flags } = uapi;
  assert.throws(() => info({ flags, out_data_type: 2 }), failsWith("EOPNOTSUPP"));
  const { data_len, out_data_type } = info({ data_len: 20 });
  assert.deepEqual([data_len, out_data_type], [24, uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD]);
  assert.deepEqual([...bytes.subarray(20)], Array(12).fill(7), "no more than there is room for");
  info({ data_len: 32, flags, out_data_type: uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD });
  const told = uapi.iommu_hw_info_vtd.read(new ByteWords(bytes), 0);
  const base = kernel.hardware.firmware.drhds[0].registerBase;
  const register = (offset: number) =>
    BigInt(kernel.hardware.mmio.read(base + offset + 4, 4)) * 2n ** 32n +
    BigInt(kernel.hardware.mmio.read(base + offset, 4));
  assert.deepEqual(told, {
    ...{ flags: 0, __reserved: 0 },
    ...{ cap_reg: register(CAP_REG), ecap_reg: register(ECAP_REG) },
  });
  assert.deepEqual([...bytes.subarray(24)], Array(8).fill(0), "what is left is zeroed");
  const other = setUp(2);
  assert.throws(
    () => call(other.kernel, other.ctx, uapi.IOMMU_GET_HW_INFO, layout, { dev_id: other.deviceId }),
    failsWith("EOPNOTSUPP"),
  );
});

test("the iommufd lives until its last device is closed, then everything in it goes", () => {
  const { kernel, host, ctx, device, ioasId, memory, map } = setUp();
  const free = kernel.mm.counts().free;
  map({ iova: 0 });
  vfio.attach(host, device, ioasId);
  vfio.openRegion(host, device, 7).write32(4, 6);
  kernel.close(ctx, memory);
  const dma = kernel.hardware.devices[0];
  assert.ok(dma.dmaWrite(0, 1), "the device holds it");
  kernel.close(device);
  assert.equal(dma.dmaWrite(0, 1), false);
  assert.equal(kernel.iommu.domainCount, 0);
  // The context table of the device's bus stays with the unit.
  assert.ok(kernel.mm.counts().free >= free - 1);
});

test("a failure at each step of map, copy, HWPT and attach leaves nothing behind", () => {
  const { kernel, host, ctx, device, deviceId, ioasId, map } = setUp();
  const { faults } = kernel;
  const other = iommufd.ioasAlloc(host, ctx);
  vfio.attach(host, device, ioasId);
  const steps: Record<string, () => void> = {
    map: () => {
      map({ iova: 0 });
      iommufd.ioasUnmap(host, ctx, { ioasId, iova: 0, lengthBytes: BYTES });
    },
    copy: () => {
      iommufd.ioasCopy(host, ctx, {
        fromIoasId: other,
        fromIova: 0,
        lengthBytes: BYTES,
        toIoasId: ioasId,
        toIova: 0,
        writable: true,
      });
      iommufd.ioasUnmap(host, ctx, { ioasId, iova: 0, lengthBytes: BYTES });
    },
    hwpt: () => {
      iommufd.destroy(host, ctx, iommufd.hwptAlloc(host, ctx, { deviceId, ptId: other }));
    },
    replace: () => {
      vfio.attach(host, device, other);
      vfio.attach(host, device, ioasId);
    },
    attach: () => {
      vfio.detach(host, device);
      vfio.attach(host, device, other);
      vfio.detach(host, device);
      vfio.attach(host, device, ioasId);
    },
  };
  map({ ioasId: other, iova: 0 });
  for (const [name, step] of Object.entries(steps)) {
    step();
    const usage = kernel.usage();
    const ranges = [ioasId, other].map((id) => iommufd.iovaRanges(host, ctx, id));
    const points = faults.record(step);
    assert.ok(points.length > 1, name);
    for (let i = 0; i < points.length; i++) {
      faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
      assert.throws(step, failsWith("ENOMEM"), `${name}: ${points[i]}`);
      assert.ok(faults.disarm());
      // Where it stopped half-way, attached elsewhere or not at all, it can always go home.
      vfio.attach(host, device, ioasId);
      assert.deepEqual(kernel.usage(), usage, `${name}: ${points[i]} (${i})`);
      assert.deepEqual(
        [ioasId, other].map((id) => iommufd.iovaRanges(host, ctx, id)),
        ranges,
        `${name}: ${points[i]}`,
      );
    }
  }
});

test("garbage arguments get an errno, and what fails changes nothing", () => {
  const { kernel, ctx, deviceId, ioasId, memory } = setUp();
  const requests = [
    0x80, 0x81, 0x82, 0x83, 0x84, 0x86, 0x87, 0x89, 0x8a, 0x8f, 0x95, 0xf0, 0xf1, 0x85, 0xff,
  ].map((number) => 0x3b00 + number);
  const word = fc.oneof(
    fc.constantFrom(
      0,
      1,
      2,
      3,
      4,
      ioasId,
      deviceId,
      memory,
      PAGE_SIZE,
      BYTES,
      2 ** 31,
      2 ** 32 - 1,
    ),
    fc.nat(2 ** 32 - 1),
  );
  const argument = fc
    .record({
      words: fc.array(word, { maxLength: 14 }),
      size: fc.option(fc.oneof(fc.nat(60), word), { nil: undefined }),
      buffer: fc.option(fc.uint8Array({ maxLength: 64 }), { nil: undefined }),
      pointerOffset: fc.constantFrom(8, 16, 24),
    })
    .map(({ words, size, buffer, pointerOffset }) => {
      const bytes = new Uint8Array(4 * words.length);
      new Uint32Array(bytes.buffer).set(words);
      if (words.length > 0) new Uint32Array(bytes.buffer)[0] = size ?? bytes.length;
      return { bytes, buffers: buffer === undefined ? [] : [{ pointerOffset, bytes: buffer }] };
    });
  fc.assert(
    fc.property(fc.constantFrom(...requests), argument, (request, given) => {
      const usage = kernel.usage();
      const file = kernel.fds.get(ctx) as unknown as IommufdFile;
      const objects = file.context.objects.size;
      try {
        kernel.host.ioctl(ctx, request, given);
      } catch (error) {
        if (!isKernelError(error)) throw error;
        assert.deepEqual(kernel.usage(), usage);
        assert.equal(file.context.objects.size, objects);
      }
    }),
    { numRuns: 3000 },
  );
  for (const bad of [null, undefined, {}, { bytes: null }, { bytes: "x" }])
    assert.throws(
      () => kernel.host.ioctl(ctx, uapi.IOMMU_IOAS_ALLOC, bad as never),
      failsWith("EFAULT"),
    );
  kernel.close(ctx);
});
