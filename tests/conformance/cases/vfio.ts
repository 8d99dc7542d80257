/**
 * VFIO devices and what their iommufd does for them: bind, HWPTs, attach, regions, interrupts, and each errno.
 *
 * Source: Linux 7.3 include/uapi/linux/{vfio,iommufd}.h, drivers/vfio/{device_cdev,vfio_main,iommufd}.c,
 *   drivers/vfio/pci/vfio_pci_{core,config,intrs,rdwr}.c, drivers/iommu/iommufd/{device,hw_pagetable}.c
 * @module
 */
import assert from "node:assert/strict";
import { E1000E_BAR0_BYTES, E1000E_DEVICE_ID, E1000E_VENDOR_ID } from "../../../src/abi/e1000e.ts";
import {
  EDU_BAR_BYTES,
  EDU_DEVICE_ID,
  EDU_ID,
  EDU_ID_VALUE,
  EDU_LIVENESS,
  EDU_VENDOR_ID,
} from "../../../src/abi/edu.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_INTERRUPT_LINE,
} from "../../../src/abi/pci.ts";
import * as uapiIommufd from "../../../src/abi/uapi/iommufd.ts";
import * as uapi from "../../../src/abi/uapi/vfio.ts";
import { decodeCap } from "../../../src/abi/vtd/registers.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import { PAGE_SIZE } from "../../../src/base/units.ts";
import * as iommufd from "../../../src/host/iommufd.ts";
import * as vfio from "../../../src/host/vfio.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { FAULT_HWPT, PASID_HWPT } from "../device-divergences.ts";
import { type DeviceUser, deviceCase, NO_FD, NO_ID } from "../device-user.ts";

const IOVA = 0x10_0000;
/** IOVAs that no device of a PC can have: it raises interrupts there. */
const MSI_WINDOW = { start: 0xfee0_0000, last: 0xfeef_ffff };

const bindRequest = (user: DeviceUser, fd: number, value: object, tail?: Uint8Array) =>
  user.request(fd, uapi.VFIO_DEVICE_BIND_IOMMUFD, uapi.vfio_device_bind_iommufd, value, {
    ...(tail === undefined ? {} : { tail }),
  });

const attachRequest = (user: DeviceUser, fd: number, value: object) =>
  user.request(fd, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, uapi.vfio_device_attach_iommufd_pt, value)
    .pt_id;

const hwptRequest = (user: DeviceUser, fd: number, value: object) =>
  user.request(fd, uapiIommufd.IOMMU_HWPT_ALLOC, uapiIommufd.iommu_hwpt_alloc, value).out_hwpt_id;

export const VFIO_CASES: readonly ConformanceCase[] = [
  deviceCase("a device can do nothing before it is bound: EINVAL", (user) => {
    const { host } = user;
    const fd = user.openPath(user.edu);
    for (const request of [
      uapi.VFIO_DEVICE_GET_INFO,
      uapi.VFIO_DEVICE_GET_REGION_INFO,
      uapi.VFIO_DEVICE_GET_IRQ_INFO,
      uapi.VFIO_DEVICE_SET_IRQS,
      uapi.VFIO_DEVICE_RESET,
      uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
      uapi.VFIO_DEVICE_GET_INFO + 0x40,
    ])
      user.fails("EINVAL", () => user.request(fd, request, uapi.vfio_device_info, {}));
    const bytes = new Uint8Array(4);
    const config = uapi.VFIO_PCI_CONFIG_REGION_INDEX * 2 ** uapi.VFIO_PCI_OFFSET_SHIFT;
    user.fails("EINVAL", () => host.pread(fd, bytes, config));
    user.fails("EINVAL", () => host.pwrite(fd, bytes, config));
  }),
  deviceCase(
    "a bound device's ioctl fails with ENOTTY for a number that it does not have",
    (user) => {
      const { fd } = user.bound(user.edu);
      user.fails("ENOTTY", () => user.request(fd, 0x3b7d, uapi.vfio_device_info, {}));
      user.fails("ENOTTY", () => user.request(fd, 0x3c6b, uapi.vfio_device_info, {}));
    },
  ),
  deviceCase(
    "BIND_IOMMUFD fails with EINVAL, E2BIG, EBADF and EBADFD for what is no iommufd, and binds nothing",
    (user) => {
      const fd = user.openPath(user.edu);
      const good = { iommufd: user.iommufd() };
      user.fails("EINVAL", () => bindRequest(user, fd, { ...good, argsz: 15 }));
      user.fails("E2BIG", () => bindRequest(user, fd, good, Uint8Array.of(0, 1)));
      user.fails("EINVAL", () => bindRequest(user, fd, { ...good, flags: 2 }));
      user.fails("EINVAL", () => bindRequest(user, fd, { iommufd: -1 }));
      user.fails("EBADF", () => bindRequest(user, fd, { iommufd: NO_FD }));
      user.fails("EBADFD", () => bindRequest(user, fd, { iommufd: user.eventfd(0) }));
      user.fails("EBADFD", () => bindRequest(user, fd, { iommufd: fd }));
      const { out_devid } = bindRequest(user, fd, good, new Uint8Array(8));
      assert.equal(out_devid, 1);
    },
  ),
  deviceCase(
    "BIND_IOMMUFD fails with EINVAL while the device is bound, by this file or another, until that one is closed",
    (user) => {
      const { host } = user;
      const one = user.bound(user.edu);
      const other = user.openPath(user.edu);
      const iommu = user.iommufd();
      user.fails("EINVAL", () => vfio.bindIommufd(host, one.fd, iommu));
      user.fails("EINVAL", () => vfio.bindIommufd(host, one.fd, one.iommufd));
      user.fails("EINVAL", () => vfio.bindIommufd(host, one.fd, NO_FD));
      user.fails("EINVAL", () => vfio.bindIommufd(host, other, iommu));
      user.fails("EINVAL", () => vfio.bindIommufd(host, other, one.iommufd));
      user.close(one.fd);
      assert.equal(vfio.bindIommufd(host, other, iommu), 1);
    },
  ),
  deviceCase("a bound device keeps its iommufd, also when that is closed", (user) => {
    const { host } = user;
    const { fd, iommufd: iommu } = user.bound(user.edu);
    const ioasId = user.ioasOf(iommu, user.memfd(PAGE_SIZE), IOVA, PAGE_SIZE);
    user.close(iommu);
    const hwptId = vfio.attach(host, fd, ioasId);
    assert.equal(vfio.attach(host, fd, hwptId), hwptId);
  }),
  deviceCase(
    "DESTROY of a bound device fails with EBUSY; its id goes when its file is closed",
    (user) => {
      const { host } = user;
      const { fd, iommufd: iommu, id } = user.bound(user.edu);
      user.fails("EBUSY", () => iommufd.destroy(host, iommu, id));
      user.close(fd);
      user.fails("ENOENT", () => iommufd.destroy(host, iommu, id));
    },
  ),
  deviceCase("two devices are bound to one iommufd", (user) => {
    const iommu = user.iommufd();
    assert.equal(user.bound(user.edu, iommu).id, 1);
    assert.equal(user.bound(user.nic, iommu).id, 2);
  }),

  // HWPTs.
  deviceCase(
    "HWPT_ALLOC fails with EOPNOTSUPP, EINVAL and ENOENT for what makes no HWPT",
    (user) => {
      const { iommufd: fd, id: dev_id } = user.bound(user.edu);
      const pt_id = iommufd.ioasAlloc(user.host, fd);
      const other = iommufd.ioasAlloc(user.host, fd);
      const good = { dev_id, pt_id };
      user.fails("EOPNOTSUPP", () => hwptRequest(user, fd, { ...good, __reserved: 1 }));
      user.fails("EINVAL", () => hwptRequest(user, fd, { ...good, data_len: 8 }));
      user.fails("EINVAL", () => hwptRequest(user, fd, { ...good, data_type: 1 }));
      user.fails("ENOENT", () => hwptRequest(user, fd, { ...good, dev_id: NO_ID }));
      user.fails("ENOENT", () => hwptRequest(user, fd, { ...good, dev_id: pt_id }));
      user.fails("EINVAL", () => hwptRequest(user, fd, { ...good, pt_id: NO_ID }));
      user.fails("EINVAL", () => hwptRequest(user, fd, { ...good, pt_id: dev_id }));
      user.fails("EOPNOTSUPP", () => hwptRequest(user, fd, { ...good, flags: 1 << 31 }), "unknown");
      user.fails("EOPNOTSUPP", () => hwptRequest(user, fd, { ...good, flags: 1 }), "nest parent");
      user.fails(
        "EOPNOTSUPP",
        () => hwptRequest(user, fd, { ...good, flags: 2 }),
        "dirty tracking",
      );
      for (const [flags, divergence] of [
        [4, FAULT_HWPT],
        [8, PASID_HWPT],
      ] as const)
        assert.equal(
          user.outcome(() => hwptRequest(user, fd, { dev_id, pt_id: other, flags })),
          user.expected(divergence),
        );

      const hwptId = hwptRequest(user, fd, good);
      user.fails("EOPNOTSUPP", () => hwptRequest(user, fd, { dev_id, pt_id: hwptId }), "nested");
      user.fails("EBUSY", () => iommufd.destroy(user.host, fd, pt_id));
      iommufd.destroy(user.host, fd, hwptId);
      iommufd.destroy(user.host, fd, pt_id);
    },
  ),
  deviceCase(
    "an address space with a HWPT has whole pages only, and only what can back DMA",
    (user) => {
      const { host } = user;
      const { iommufd: fd, id: deviceId } = user.bound(user.edu);
      const file = user.memfd(4 * PAGE_SIZE);
      const ptId = iommufd.ioasAlloc(host, fd);
      user.map(fd, ptId, { file, iova: IOVA + 0x10, lengthBytes: 0x20 });
      user.fails("EADDRINUSE", () => iommufd.hwptAlloc(host, fd, { deviceId, ptId }));
      user.unmapAll(fd, ptId);
      user.map(fd, ptId, { file, iova: IOVA, lengthBytes: PAGE_SIZE });
      const hwptId = iommufd.hwptAlloc(host, fd, { deviceId, ptId });
      const map = (range: object) =>
        user.map(fd, ptId, { file, iova: 2 * IOVA, lengthBytes: PAGE_SIZE, ...range });
      user.fails("EINVAL", () => map({ lengthBytes: 0x20 }));
      user.fails("EINVAL", () => map({ iova: 2 * IOVA + 0x10 }));
      user.fails("EINVAL", () => map({ start: 0x10 }));
      user.fails("EINVAL", () => map({ file: user.eventfd(0) }), "no memory");
      user.fails("EINVAL", () => map({ file: user.iommufd() }), "no memory");
      user.fails(
        "EINVAL",
        () => map({ start: 3 * PAGE_SIZE, lengthBytes: 2 * PAGE_SIZE }),
        "the end",
      );
      user.fails("EINVAL", () => map({ start: 4 * PAGE_SIZE }), "behind the end");
      user.fails("EINVAL", () => map({ iova: 2 ** 48 }), "past the aperture");
      user.fails("EINVAL", () => map({ iova: 2 ** 48 - PAGE_SIZE, lengthBytes: 2 * PAGE_SIZE }));
      assert.equal(map({ iova: 2 ** 48 - PAGE_SIZE }), 2 ** 48 - PAGE_SIZE);
      assert.equal(map({ start: 3 * PAGE_SIZE }), 2 * IOVA);
      assert.equal(iommufd.iovaRanges(host, fd, ptId).alignment, PAGE_SIZE);
      iommufd.destroy(host, fd, hwptId);
      assert.equal(iommufd.iovaRanges(host, fd, ptId).alignment, 1);
    },
  ),
  deviceCase("an area keeps its file when the descriptor is closed", (user) => {
    const { host } = user;
    const { iommufd: fd, id: deviceId } = user.bound(user.edu);
    const file = user.memfd(PAGE_SIZE);
    const ptId = user.ioasOf(fd, file, IOVA, PAGE_SIZE);
    user.close(file);
    iommufd.hwptAlloc(host, fd, { deviceId, ptId });
  }),

  // Attachments.
  deviceCase(
    "ATTACH fails with EINVAL for bad arguments, ENOENT for no object, EINVAL for a device, and attaches nothing",
    (user) => {
      const { host } = user;
      const { fd, iommufd: iommu, id } = user.bound(user.edu);
      const pt_id = iommufd.ioasAlloc(host, iommu);
      user.fails("EINVAL", () => attachRequest(user, fd, { pt_id, argsz: 11 }));
      user.fails("EINVAL", () => attachRequest(user, fd, { pt_id, flags: 2 }));
      user.fails("ENOENT", () => attachRequest(user, fd, { pt_id: NO_ID }));
      user.fails("EINVAL", () => attachRequest(user, fd, { pt_id: id }));
      const detach = (value: object) =>
        user.request(
          fd,
          uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
          uapi.vfio_device_detach_iommufd_pt,
          value,
        );
      user.fails("EINVAL", () => detach({ argsz: 7 }));
      user.fails("EINVAL", () => detach({ flags: 2 }));
      iommufd.destroy(host, iommu, pt_id);
    },
  ),
  deviceCase("ATTACH with a PASID fails with EINVAL: no HWPT is for PASIDs", (user) => {
    const { host } = user;
    const { fd, iommufd: iommu, id: deviceId } = user.bound(user.edu);
    const ptId = iommufd.ioasAlloc(host, iommu);
    const hwptId = iommufd.hwptAlloc(host, iommu, { deviceId, ptId });
    const flags = uapi.VFIO_DEVICE_ATTACH_PASID;
    user.fails("EINVAL", () => attachRequest(user, fd, { pt_id: hwptId, flags, argsz: 15 }));
    user.fails("EINVAL", () => attachRequest(user, fd, { pt_id: hwptId, flags, pasid: 1 }));
    user.fails("EINVAL", () => attachRequest(user, fd, { pt_id: ptId, flags, pasid: 1 }));
    user.fails("ENOENT", () => attachRequest(user, fd, { pt_id: NO_ID, flags, pasid: 1 }));
    const detach = (value: object) =>
      user.request(fd, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, uapi.vfio_device_detach_iommufd_pt, {
        flags,
        ...value,
      });
    user.fails("EINVAL", () => detach({ argsz: 11 }));
    detach({ pasid: 1 });
  }),
  deviceCase("ATTACH to an IOAS makes a HWPT, which goes with its last device", (user) => {
    const { host } = user;
    const iommu = user.iommufd();
    const [edu, nic] = [user.bound(user.edu, iommu), user.bound(user.nic, iommu)];
    const ioasId = user.ioasOf(iommu, user.memfd(PAGE_SIZE), IOVA, PAGE_SIZE);
    const hwptId = vfio.attach(host, edu.fd, ioasId);
    assert.equal(vfio.attach(host, edu.fd, ioasId), hwptId, "again");
    assert.equal(vfio.attach(host, nic.fd, ioasId), hwptId, "the same for another device");
    user.fails("EBUSY", () => iommufd.destroy(host, iommu, hwptId));
    user.fails("EBUSY", () => iommufd.destroy(host, iommu, ioasId));
    vfio.detach(host, edu.fd);
    user.fails("EBUSY", () => iommufd.destroy(host, iommu, hwptId));
    vfio.detach(host, nic.fd);
    user.fails("ENOENT", () => iommufd.destroy(host, iommu, hwptId));
    vfio.detach(host, nic.fd);
    iommufd.destroy(host, iommu, ioasId);
  }),
  deviceCase(
    "ATTACH to a HWPT keeps it; it can be destroyed when nothing is attached any more",
    (user) => {
      const { host } = user;
      const { fd, iommufd: iommu, id: deviceId } = user.bound(user.edu);
      const ptId = iommufd.ioasAlloc(host, iommu);
      const hwptId = iommufd.hwptAlloc(host, iommu, { deviceId, ptId });
      assert.equal(vfio.attach(host, fd, hwptId), hwptId);
      user.fails("EBUSY", () => iommufd.destroy(host, iommu, hwptId));
      const auto = vfio.attach(host, fd, ptId);
      assert.notEqual(auto, hwptId, "an IOAS is attached by HWPTs of its own making");
      assert.equal(vfio.attach(host, fd, hwptId), hwptId);
      user.fails("ENOENT", () => iommufd.destroy(host, iommu, auto));
      vfio.detach(host, fd);
      iommufd.destroy(host, iommu, hwptId);
    },
  ),
  deviceCase("closing an attached device detaches it", (user) => {
    const { host } = user;
    const { fd, iommufd: iommu } = user.bound(user.edu);
    const ioasId = iommufd.ioasAlloc(host, iommu);
    const hwptId = vfio.attach(host, fd, ioasId);
    user.close(fd);
    user.fails("ENOENT", () => iommufd.destroy(host, iommu, hwptId));
    iommufd.destroy(host, iommu, ioasId);
  }),
  deviceCase("an attached device takes the IOVAs of its interrupts away", (user) => {
    const { host } = user;
    const { fd, iommufd: iommu } = user.bound(user.edu);
    const ioasId = iommufd.ioasAlloc(host, iommu);
    const ranges = () => iommufd.iovaRanges(host, iommu, ioasId).ranges;
    const before = ranges();
    vfio.attach(host, fd, ioasId);
    assert.deepEqual(ranges(), [
      { start: 0, last: MSI_WINDOW.start - 1 },
      { start: MSI_WINDOW.last + 1, last: 2 ** 48 - 1 },
    ]);
    const file = user.memfd(2 * PAGE_SIZE);
    const map = (iova: number, lengthBytes: number) =>
      user.map(iommu, ioasId, { file, iova, lengthBytes });
    user.fails("EINVAL", () => map(MSI_WINDOW.start, PAGE_SIZE));
    user.fails("EINVAL", () => map(MSI_WINDOW.start - PAGE_SIZE, 2 * PAGE_SIZE));
    assert.equal(map(MSI_WINDOW.start - PAGE_SIZE, PAGE_SIZE), MSI_WINDOW.start - PAGE_SIZE);
    const allow = (start: number, last: number) =>
      iommufd.ioasAllowIovas(host, iommu, ioasId, [{ start, last }]);
    user.fails("EADDRINUSE", () => allow(MSI_WINDOW.last, MSI_WINDOW.last + 0x1000));
    user.fails("EADDRINUSE", () => allow(0, 2 ** 48));
    allow(MSI_WINDOW.last + 1, MSI_WINDOW.last + PAGE_SIZE);
    const found = user.map(iommu, ioasId, { file, lengthBytes: PAGE_SIZE });
    assert.equal(found, MSI_WINDOW.last + 1);
    vfio.detach(host, fd);
    assert.deepEqual(ranges(), before);
  }),
  deviceCase(
    "ATTACH fails with EADDRINUSE where an area or an allowed range is in the device's way, and attaches nothing",
    (user) => {
      const { host } = user;
      const { fd, iommufd: iommu } = user.bound(user.edu);
      const file = user.memfd(PAGE_SIZE);
      const ioasId = user.ioasOf(iommu, file, MSI_WINDOW.start, PAGE_SIZE);
      user.fails("EADDRINUSE", () => vfio.attach(host, fd, ioasId));
      user.unmapAll(iommu, ioasId);
      iommufd.ioasAllowIovas(host, iommu, ioasId, [{ start: 0xfee0_0000, last: 0xfee0_0001 }]);
      user.fails("EADDRINUSE", () => vfio.attach(host, fd, ioasId));
      iommufd.ioasAllowIovas(host, iommu, ioasId, []);
      user.map(iommu, ioasId, { file, iova: 2 ** 48, lengthBytes: PAGE_SIZE });
      user.fails("EADDRINUSE", () => vfio.attach(host, fd, ioasId), "past the aperture");
      user.unmapAll(iommu, ioasId);
      vfio.attach(host, fd, ioasId);
    },
  ),
  deviceCase("GET_HW_INFO tells of the remapping unit, as much as there is room for", (user) => {
    const { iommufd: fd, id: dev_id } = user.bound(user.edu);
    const layout = uapiIommufd.iommu_hw_info;
    const ask = (value: object, bytes?: Uint8Array) =>
      user.request(
        fd,
        uapiIommufd.IOMMU_GET_HW_INFO,
        layout,
        { dev_id, ...value },
        {
          buffers: bytes === undefined ? [] : [{ pointerOffset: layout.offset.data_uptr, bytes }],
        },
      );
    user.fails("EOPNOTSUPP", () => ask({ flags: 2 }));
    user.fails("EOPNOTSUPP", () => ask({ __reserved1: 1 }));
    user.fails("EFAULT", () => ask({ data_len: 8 }));
    const told = ask({});
    assert.equal(told.out_max_pasid_log2, 0);
    assert.equal(told.out_capabilities, uapiIommufd.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED);
    assert.equal(told.out_data_type, uapiIommufd.IOMMU_HW_INFO_TYPE_INTEL_VTD);
    const size = uapiIommufd.iommu_hw_info_vtd.sizeBytes;
    assert.equal(told.data_len, size);
    const [whole, room] = [new Uint8Array(size), new Uint8Array(size + 8).fill(0xee)];
    ask({ data_len: size }, whole);
    assert.equal(ask({ data_len: room.length }, room).data_len, size);
    assert.deepEqual(room.subarray(0, size), whole);
    assert.deepEqual(room.subarray(size), new Uint8Array(8), "the rest is zeroed");
    const registers = new ByteWords(whole);
    const { cap_reg } = uapiIommufd.iommu_hw_info_vtd.offset;
    const cap = decodeCap(registers.load32(cap_reg), registers.load32(cap_reg + 4));
    assert.deepEqual([cap.mgaw, cap.sagaw & 0b100], [48, 0b100], "48 bits by 4 levels");
    const half = new Uint8Array(size).fill(0xee);
    assert.equal(ask({ data_len: 12 }, half).data_len, size);
    assert.deepEqual(half.subarray(0, 12), whole.subarray(0, 12));
    assert.deepEqual(half.subarray(12), new Uint8Array(size - 12).fill(0xee), "no more");
    const { IOMMU_HW_INFO_FLAG_INPUT_TYPE: flags } = uapiIommufd;
    assert.equal(ask({ flags, out_data_type: 1 }).out_data_type, 1);
    user.fails("EOPNOTSUPP", () => ask({ flags, out_data_type: 2 }));
  }),

  deviceCase(
    "IOAS_ALLOC, MAP_FILE, COPY, HWPT_ALLOC and ATTACH change nothing when a step of them fails",
    (user) => {
      const { host } = user;
      const { fd, iommufd: iommu, id: deviceId } = user.bound(user.edu);
      const lengthBytes = 4 * PAGE_SIZE;
      const file = user.memfd(lengthBytes);
      // Two areas, of which the first is undone when the second fails.
      const full = user.ioasOf(iommu, file, IOVA, PAGE_SIZE);
      user.map(iommu, full, {
        ...{ file, start: PAGE_SIZE, iova: IOVA + PAGE_SIZE, lengthBytes: lengthBytes - PAGE_SIZE },
      });
      const empty = iommufd.ioasAlloc(host, iommu);
      const hwpts = [full, empty].map((ptId) => iommufd.hwptAlloc(host, iommu, { deviceId, ptId }));
      const isEmpty = () => assert.equal(user.unmapAll(iommu, empty), 0);
      const unmap = () => assert.equal(user.unmapAll(iommu, empty), lengthBytes);
      const ids: number[] = [];
      const destroy = (id: number) => {
        ids.push(id);
        iommufd.destroy(host, iommu, id);
      };
      const copy = { fromIoasId: full, fromIova: IOVA, lengthBytes, toIoasId: empty, toIova: IOVA };
      const failures = [
        user.failEachStep(() => iommufd.ioasAlloc(host, iommu), destroy, isEmpty),
        user.failEachStep(
          () => user.map(iommu, empty, { file, iova: IOVA, lengthBytes }),
          unmap,
          isEmpty,
        ),
        user.failEachStep(
          () => iommufd.ioasCopy(host, iommu, { ...copy, writable: true }),
          unmap,
          isEmpty,
        ),
        user.failEachStep(
          () => iommufd.hwptAlloc(host, iommu, { deviceId, ptId: full }),
          destroy,
          isEmpty,
        ),
        user.failEachStep(
          () => vfio.attach(host, fd, hwpts[0]),
          () => vfio.detach(host, fd),
          isEmpty,
        ),
      ];
      vfio.attach(host, fd, hwpts[1]);
      failures.push(
        user.failEachStep(
          () => vfio.attach(host, fd, full),
          (auto) => {
            ids.push(auto);
            vfio.attach(host, fd, hwpts[1]);
            user.fails("ENOENT", () => iommufd.destroy(host, iommu, auto));
          },
          () => user.fails("EBUSY", () => iommufd.destroy(host, iommu, hwpts[1])),
        ),
      );
      for (const count of failures) assert.ok(count > 0, `failures: ${failures}`);
      assert.equal(new Set(ids).size, 1, `no id is lost: ${ids}`);
    },
  ),

  // What the device is.
  deviceCase("GET_INFO, GET_REGION_INFO and GET_IRQ_INFO tell what the devices have", (user) => {
    const { host } = user;
    const edu = user.bound(user.edu).fd;
    const { regionCount, irqCount } = vfio.deviceInfo(host, edu);
    assert.deepEqual({ regionCount, irqCount }, { regionCount: 9, irqCount: 5 });
    for (const argsz of [0, 15])
      user.fails("EINVAL", () =>
        user.request(edu, uapi.VFIO_DEVICE_GET_INFO, uapi.vfio_device_info, { argsz }),
      );
    const rw = uapi.VFIO_REGION_INFO_FLAG_READ | uapi.VFIO_REGION_INFO_FLAG_WRITE;
    const region = (index: number) => vfio.regionInfo(host, edu, index);
    assert.equal(region(0).sizeBytes, EDU_BAR_BYTES);
    assert.equal(region(0).flags & rw, rw);
    for (const index of [1, 2, 3, 4, 5, 6]) {
      const { sizeBytes, flags } = region(index);
      assert.deepEqual({ sizeBytes, flags }, { sizeBytes: 0, flags: 0 }, `region ${index}`);
    }
    const config = region(uapi.VFIO_PCI_CONFIG_REGION_INDEX);
    assert.equal(config.flags, rw);
    for (const index of [8, 9, 1000]) user.fails("EINVAL", () => region(index), `region ${index}`);
    const short = { index: 0, argsz: 31 };
    user.fails("EINVAL", () =>
      user.request(edu, uapi.VFIO_DEVICE_GET_REGION_INFO, uapi.vfio_region_info, short),
    );
    const nic = user.bound(user.nic).fd;
    assert.equal(vfio.regionInfo(host, nic, 0).sizeBytes, E1000E_BAR0_BYTES);
    assert.equal(vfio.regionInfo(host, nic, 7).sizeBytes, 4096);
    for (const fd of [edu, nic]) {
      const eventfd = uapi.VFIO_IRQ_INFO_EVENTFD | uapi.VFIO_IRQ_INFO_NORESIZE;
      assert.deepEqual(vfio.irqInfo(host, fd, uapi.VFIO_PCI_MSI_IRQ_INDEX), {
        ...{ count: 1, flags: eventfd },
      });
      user.fails("EINVAL", () => vfio.irqInfo(host, fd, 5));
      user.fails("EINVAL", () =>
        user.request(fd, uapi.VFIO_DEVICE_GET_IRQ_INFO, uapi.vfio_irq_info, { argsz: 15 }),
      );
    }
  }),
  deviceCase(
    "config space shows ids, the user's own BARs, and lets the user change what is not the kernel's",
    (user) => {
      const { host } = user;
      const ids = (fd: number) => vfio.openRegion(host, fd, 7).read32(0);
      assert.equal(ids(user.bound(user.nic).fd), (E1000E_DEVICE_ID << 16) | E1000E_VENDOR_ID);
      const { fd } = user.bound(user.edu);
      const config = vfio.openRegion(host, fd, uapi.VFIO_PCI_CONFIG_REGION_INDEX);
      const eduIds = ((EDU_DEVICE_ID << 16) | EDU_VENDOR_ID) >>> 0;
      assert.equal(config.read32(0), eduIds);
      config.write32(0, 0);
      assert.equal(config.read32(0), eduIds, "read-only");
      const bar = config.read32(PCI_BASE_ADDRESS_0);
      config.write32(PCI_BASE_ADDRESS_0, 0xffff_ffff);
      assert.equal(config.read32(PCI_BASE_ADDRESS_0), (2 ** 32 - EDU_BAR_BYTES) >>> 0, "its size");
      assert.equal(
        vfio.openRegion(host, fd, 0).read32(EDU_ID),
        EDU_ID_VALUE,
        "it stays where it is",
      );
      config.write32(PCI_BASE_ADDRESS_0, bar);
      assert.equal(config.read32(PCI_BASE_ADDRESS_0), bar);
      const line = config.read32(PCI_INTERRUPT_LINE);
      config.write32(PCI_INTERRUPT_LINE, (line & ~0xff) | 0x5c);
      assert.equal(config.read32(PCI_INTERRUPT_LINE), ((line & ~0xff) | 0x5c) >>> 0);
    },
  ),
  deviceCase("a device starts with its memory on and bus mastering off", (user) => {
    const { host } = user;
    for (let i = 0; i < 2; i++) {
      const { fd } = user.bound(user.edu);
      const config = vfio.openRegion(host, fd, uapi.VFIO_PCI_CONFIG_REGION_INDEX);
      const bits = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
      assert.equal(config.read32(PCI_COMMAND) & bits, PCI_COMMAND_MEMORY);
      config.write32(PCI_COMMAND, bits);
      assert.equal(config.read32(PCI_COMMAND) & bits, bits);
      user.close(fd);
    }
  }),
  deviceCase(
    "accesses of any length and place read config space, and fail with EFAULT past its end",
    (user) => {
      const { host } = user;
      const { fd } = user.bound(user.edu);
      const { fileOffset, sizeBytes } = vfio.regionInfo(
        host,
        fd,
        uapi.VFIO_PCI_CONFIG_REGION_INDEX,
      );
      const read = (at: number, length: number) => {
        const bytes = new Uint8Array(length);
        assert.equal(host.pread(fd, bytes, fileOffset + at), length);
        return bytes;
      };
      const header = read(0, 64);
      for (const [at, length] of [
        [0, 1],
        [1, 2],
        [1, 7],
        [3, 5],
        [2, 4],
        [8, 56],
      ])
        assert.deepEqual(read(at, length), header.subarray(at, at + length), `${length} at ${at}`);
      read(sizeBytes - 1, 1);
      user.fails("EFAULT", () => read(sizeBytes, 1));
      user.fails("EFAULT", () => read(sizeBytes - 1, 2));
      user.fails("EFAULT", () => host.pwrite(fd, new Uint8Array(4), fileOffset + sizeBytes));
      assert.equal(host.pread(fd, new Uint8Array(0), fileOffset), 0);
    },
  ),
  deviceCase(
    "registers of a BAR are read and written; past its end it is short, then EINVAL; EIO while memory is off",
    (user) => {
      const { host } = user;
      const { fd } = user.bound(user.edu);
      const bar = vfio.openRegion(host, fd, 0);
      assert.equal(bar.read32(EDU_ID), EDU_ID_VALUE);
      bar.write32(EDU_LIVENESS, 0x1234_5678);
      assert.equal(bar.read32(EDU_LIVENESS), ~0x1234_5678 >>> 0);
      const bytes = new Uint8Array(8);
      assert.equal(host.pread(fd, bytes, EDU_BAR_BYTES - 4), 4, "to the end");
      user.fails("EINVAL", () => host.pread(fd, bytes, EDU_BAR_BYTES));
      user.fails("EINVAL", () => host.pwrite(fd, bytes, EDU_BAR_BYTES));
      for (const index of [1, 6, 9, 200])
        user.fails("EINVAL", () => host.pread(fd, bytes, index * 2 ** 40), `region ${index}`);
      const config = vfio.openRegion(host, fd, uapi.VFIO_PCI_CONFIG_REGION_INDEX);
      config.write32(PCI_COMMAND, 0);
      user.fails("EIO", () => bar.read32(EDU_ID));
      user.fails("EIO", () => bar.write32(EDU_LIVENESS, 0));
      config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY);
      assert.equal(bar.read32(EDU_LIVENESS), ~0x1234_5678 >>> 0, "nothing was written");
    },
  ),
  deviceCase(
    "RESET makes the device as it was in the beginning, or fails with EINVAL when it has none",
    (user) => {
      const { host } = user;
      const edu = user.bound(user.edu).fd;
      const bar = vfio.openRegion(host, edu, 0);
      bar.write32(EDU_LIVENESS, 0x1234_5678);
      const { canReset } = vfio.deviceInfo(host, edu);
      assert.equal(
        user.outcome(() => vfio.reset(host, edu)),
        canReset ? "ok" : "EINVAL",
      );
      assert.equal(bar.read32(EDU_LIVENESS), canReset ? 0 : ~0x1234_5678 >>> 0);
    },
  ),
];
