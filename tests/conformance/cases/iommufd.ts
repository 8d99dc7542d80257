/**
 * iommufd without a device: address spaces, what files they show where, and each errno.
 *
 * Source: Linux 7.3 include/uapi/linux/iommufd.h, drivers/iommu/iommufd/{main,ioas,io_pagetable}.c
 * @module
 */
import assert from "node:assert/strict";
import type { Struct } from "../../../src/abi/struct.ts";
import { ioctlNumber } from "../../../src/abi/uapi/ioctl.ts";
import * as uapi from "../../../src/abi/uapi/iommufd.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import { MIB, PAGE_SIZE } from "../../../src/base/units.ts";
import * as iommufd from "../../../src/host/iommufd.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import {
  AUTO_ALIGNMENT,
  LAST_IOVA,
  PARTIAL_UNMAP,
  PINNED_AT_MAP_FILE,
  RLIMIT_MODE,
} from "../device-divergences.ts";
import {
  type DeviceUser,
  deviceCase,
  type Fields,
  NO_FD,
  NO_ID,
  type RawValue,
  U64_LAST,
} from "../device-user.ts";

const READ = uapi.IOMMU_IOAS_MAP_READABLE;
const WRITE = uapi.IOMMU_IOAS_MAP_WRITEABLE;
const FIXED = uapi.IOMMU_IOAS_MAP_FIXED_IOVA;

type Layout = Struct<Fields>;

/** Every request that both kernels have, and the size of its structure's first version. */
const REQUESTS: readonly (readonly [number, Layout, number])[] = [
  [uapi.IOMMU_DESTROY, uapi.iommu_destroy, 8],
  [uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, 12],
  [uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.iommu_ioas_allow_iovas, 24],
  [uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, 40],
  [uapi.IOMMU_IOAS_IOVA_RANGES, uapi.iommu_ioas_iova_ranges, 32],
  [uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, 24],
  [uapi.IOMMU_OPTION, uapi.iommu_option, 24],
  [uapi.IOMMU_HWPT_ALLOC, uapi.iommu_hwpt_alloc, 24],
  [uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, 32],
  [uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, 40],
];

export const IOMMUFD_CASES: readonly ConformanceCase[] = [
  deviceCase("an iommufd's ioctl fails with ENOTTY for a number that it does not have", (user) => {
    const fd = user.iommufd();
    for (const request of [
      ioctlNumber(uapi.IOMMUFD_TYPE, 0x20),
      ioctlNumber(uapi.IOMMUFD_TYPE, 0xef),
      ioctlNumber(uapi.IOMMUFD_TYPE + 1, 0x81),
      uapi.IOMMU_IOAS_ALLOC | (1 << 30),
    ])
      user.fails("ENOTTY", () => user.request(fd, request, uapi.iommu_ioas_alloc, {}));
  }),
  deviceCase(
    "an iommufd's ioctl fails with EINVAL below its least size, with E2BIG when unknown bytes are set",
    (user) => {
      const fd = user.iommufd();
      for (const [request, layout, minBytes] of REQUESTS) {
        user.fails(
          "EINVAL",
          () => user.request(fd, request, layout, { size: minBytes - 1 }),
          layout.name,
        );
        for (const tail of [Uint8Array.of(1), Uint8Array.of(0, 0, 0, 0x80)])
          user.fails("E2BIG", () => user.request(fd, request, layout, {}, { tail }), layout.name);
      }
      const tail = new Uint8Array(64);
      const made = user.request(fd, uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, {}, { tail });
      assert.equal(made.out_ioas_id, 1);
    },
  ),
  deviceCase(
    "IOAS_ALLOC gives the lowest free id from 1 on, and fails with EOPNOTSUPP for flags",
    (user) => {
      const fd = user.iommufd();
      const alloc = () => iommufd.ioasAlloc(user.host, fd);
      assert.deepEqual([alloc(), alloc(), alloc()], [1, 2, 3]);
      iommufd.destroy(user.host, fd, 2);
      assert.deepEqual([alloc(), alloc()], [2, 4]);
      user.fails("EOPNOTSUPP", () =>
        user.request(fd, uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, { flags: 1 }),
      );
      assert.equal(alloc(), 5, "what failed has taken no id");
    },
  ),
  deviceCase("objects of one iommufd are not there in another", (user) => {
    const [one, other] = [user.iommufd(), user.iommufd()];
    const id = iommufd.ioasAlloc(user.host, one);
    user.fails("ENOENT", () => iommufd.destroy(user.host, other, id));
    iommufd.destroy(user.host, one, id);
  }),
  deviceCase("DESTROY fails with ENOENT for an id that is nobody's, or not any more", (user) => {
    const fd = user.iommufd();
    const id = iommufd.ioasAlloc(user.host, fd);
    for (const none of [0, NO_ID, 0xffff_ffff])
      user.fails("ENOENT", () => iommufd.destroy(user.host, fd, none));
    iommufd.destroy(user.host, fd, id);
    user.fails("ENOENT", () => iommufd.destroy(user.host, fd, id));
  }),
  deviceCase(
    "requests for an address space fail with ENOENT when there is none of that id",
    (user) => {
      const fd = user.iommufd();
      const file = user.memfd(PAGE_SIZE);
      const ioas_id = NO_ID;
      const to = iommufd.ioasAlloc(user.host, fd);
      const flags = READ;
      const length = PAGE_SIZE;
      const none = (request: number, layout: Layout, value: RawValue<Fields>) =>
        user.fails("ENOENT", () => user.request(fd, request, layout, value), layout.name);
      none(uapi.IOMMU_IOAS_IOVA_RANGES, uapi.iommu_ioas_iova_ranges, { ioas_id });
      none(uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.iommu_ioas_allow_iovas, { ioas_id });
      none(uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, { ioas_id, length });
      none(uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, {
        ...{ ioas_id, fd: file, length, flags },
      });
      none(uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, {
        ...{ src_ioas_id: NO_ID, dst_ioas_id: to, length, flags },
      });
      none(uapi.IOMMU_OPTION, uapi.iommu_option, {
        ...{ option_id: uapi.IOMMU_OPTION_HUGE_PAGES, op: uapi.IOMMU_OPTION_OP_GET },
        object_id: NO_ID,
      });
    },
  ),
  deviceCase(
    "MAP_FILE fails with EOPNOTSUPP for unknown flags, EINVAL without rights or length, EOVERFLOW past the last byte",
    (user) => {
      const fd = user.iommufd();
      const ioas_id = iommufd.ioasAlloc(user.host, fd);
      const file = user.memfd(PAGE_SIZE);
      const good = { ioas_id, fd: file, length: PAGE_SIZE, flags: READ };
      const map = (value: object) =>
        user.request(fd, uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, {
          ...good,
          ...value,
        });
      user.fails("EOPNOTSUPP", () => map({ flags: READ | 8 }));
      user.fails("EINVAL", () => map({ flags: 0 }));
      user.fails("EINVAL", () => map({ flags: FIXED, iova: PAGE_SIZE }));
      user.fails("EINVAL", () => map({ length: 0 }));
      user.fails("EOVERFLOW", () => map({ iova: U64_LAST }));
      user.fails("EOVERFLOW", () => map({ length: U64_LAST }));
      user.fails("EOVERFLOW", () => map({ start: 2n ** 64n - 4096n, length: 8192 }));
      user.fails("EOVERFLOW", () =>
        map({ flags: READ | FIXED, iova: 2n ** 64n - 4096n, length: 8192 }),
      );
      user.fails("EBADF", () => map({ fd: -1 }));
      user.fails("EBADF", () => map({ fd: NO_FD }));
      assert.equal(user.unmapAll(fd, ioas_id), 0, "nothing was mapped");
    },
  ),
  deviceCase(
    "MAP_FILE without an IOVA finds the first room, aligned like the file's offset, and never IOVA 0",
    (user) => {
      const fd = user.iommufd();
      const ioasId = iommufd.ioasAlloc(user.host, fd);
      const fileFd = user.memfd(MIB);
      const map = (start: number, lengthBytes: number) =>
        iommufd.ioasMapFile(user.host, fd, { ioasId, fileFd, start, lengthBytes, writable: true });
      assert.equal(map(0, PAGE_SIZE), PAGE_SIZE);
      assert.equal(map(0, 0x1_0000), 0x1_0000, "the length's alignment where the offset is 0");
      assert.equal(map(0x3000, 2 * PAGE_SIZE), 0x2000, "the offset's alignment");
      assert.equal(map(0x8000, 0x2_0000), 0x8000 + 0x1_8000);
      assert.equal(map(0x10, PAGE_SIZE), 0x4010, "the place in the page is kept");
      assert.equal(map(0, PAGE_SIZE), 0x6000);
    },
  ),
  deviceCase(
    "MAP_FILE at an IOVA fails with EEXIST where any byte of another area is, and fits beside it",
    (user) => {
      const fd = user.iommufd();
      const ioasId = iommufd.ioasAlloc(user.host, fd);
      const fileFd = user.memfd(16 * PAGE_SIZE);
      const map = (iova: number, lengthBytes: number) =>
        iommufd.ioasMapFile(user.host, fd, {
          ...{ ioasId, fileFd, start: 0, lengthBytes, iova, writable: false },
        });
      assert.equal(map(0x10_0000, 0x4000), 0x10_0000);
      for (const [iova, length] of [
        [0x10_0000, 0x4000],
        [0x10_1000, 0x1000],
        [0xf_f000, 0x1001],
        [0x10_3fff, 0x1],
        [0xf_0000, 0x1_0000 + 0x4000],
      ])
        user.fails("EEXIST", () => map(iova, length), iova.toString(16));
      assert.equal(map(0xf_f000, 0x1000), 0xf_f000);
      assert.equal(map(0x10_4000, 0x1000), 0x10_4000);
      assert.equal(map(0, 0x1000), 0, "IOVA 0 when it is asked for");
    },
  ),
  deviceCase("an address space without HWPT takes areas of any alignment", (user) => {
    const fd = user.iommufd();
    const ioasId = iommufd.ioasAlloc(user.host, fd);
    const fileFd = user.memfd(4 * PAGE_SIZE);
    const map = (iova: number, start: number, lengthBytes: number) =>
      iommufd.ioasMapFile(user.host, fd, {
        ...{ ioasId, fileFd, start, lengthBytes, iova, writable: true },
      });
    assert.equal(map(0x10_0003, 0x11, 0x777), 0x10_0003);
    assert.equal(map(0x10_0003 + 0x777, 1, 1), 0x10_077a);
    user.fails("EEXIST", () => map(0x10_0000, 0, 4));
    const unmap = (iova: number, lengthBytes: number) =>
      iommufd.ioasUnmap(user.host, fd, { ioasId, iova, lengthBytes });
    assert.equal(unmap(0x10_0003, 0x777), 0x777);
    assert.equal(unmap(0x10_0000, 0x1000), 1);
  }),
  deviceCase("MAP_FILE of what cannot back DMA, or beyond a file's end, without HWPT", (user) => {
    const fd = user.iommufd();
    const ioasId = iommufd.ioasAlloc(user.host, fd);
    const lengthBytes = 2 * PAGE_SIZE;
    for (const file of [user.memfd(PAGE_SIZE), user.eventfd(0), user.iommufd()])
      assert.equal(
        user.outcome(() => user.map(fd, ioasId, { file, lengthBytes })),
        user.expected(PINNED_AT_MAP_FILE),
      );
  }),
  deviceCase(
    "UNMAP takes whole areas, several at once, and tells how many bytes; ENOENT when there is none",
    (user) => {
      const fd = user.iommufd();
      const ioasId = threeAreas(user, fd);
      const unmap = (iova: number, lengthBytes: number) =>
        iommufd.ioasUnmap(user.host, fd, { ioasId, iova, lengthBytes });
      user.fails("ENOENT", () => unmap(0x1_0000, 0x1000));
      user.fails("EINVAL", () => unmap(0x10_0000, 0));
      user.fails("ENOENT", () => unmap(0x10_0000, 0x1000), "a part at the beginning");
      user.fails("ENOENT", () => unmap(0x10_1000, 0x2000), "the end of one, the whole next");
      assert.equal(unmap(0x0f_0000, 0x1_2000), 0x2000, "more than the area");
      user.fails("ENOENT", () => unmap(0x10_0000, 0x2000), "not twice");
      assert.equal(unmap(0x10_2000, 0x10_0000), 0x3000, "two with a hole between them");
      assert.equal(user.unmapAll(fd, ioasId), 0, "all of nothing");
    },
  ),
  deviceCase("UNMAP of everything, and past the last IOVA", (user) => {
    const fd = user.iommufd();
    const ioasId = threeAreas(user, fd);
    const unmap = (iova: number | bigint, length: number | bigint) =>
      user.request(fd, uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, {
        ...{ ioas_id: ioasId, iova, length },
      }).length;
    user.fails("EOVERFLOW", () => unmap(U64_LAST, 1));
    user.fails("EOVERFLOW", () => unmap(1, U64_LAST));
    user.fails("EOVERFLOW", () => unmap(2n ** 64n - 4096n, 8192));
    user.fails("ENOENT", () => unmap(2n ** 64n - 8192n, 8192));
    assert.equal(unmap(0, U64_LAST), 0x5000);
    assert.equal(unmap(0, U64_LAST), 0);
  }),
  deviceCase("UNMAP over a range that ends inside an area", (user) => {
    const fd = user.iommufd();
    const ioasId = threeAreas(user, fd);
    user.fails("ENOENT", () =>
      iommufd.ioasUnmap(user.host, fd, { ioasId, iova: 0x10_0000, lengthBytes: 0x3000 }),
    );
    const left = user.unmapAll(fd, ioasId);
    assert.equal(left, user.expected(PARTIAL_UNMAP));
  }),
  deviceCase(
    "COPY shows the same bytes again: a part, over neighbours, in the same address space, and after the first is gone",
    (user) => {
      const { host } = user;
      const fd = user.iommufd();
      const fromIoasId = threeAreas(user, fd);
      const toIoasId = iommufd.ioasAlloc(host, fd);
      const copy = (fromIova: number, lengthBytes: number, toIova?: number, to = toIoasId) =>
        iommufd.ioasCopy(host, fd, {
          ...{ fromIoasId, fromIova, lengthBytes, toIoasId: to, writable: true },
          ...(toIova === undefined ? {} : { toIova }),
        });
      assert.equal(copy(0x10_1000, 0x1000, 0x50_0000), 0x50_0000, "a part");
      assert.equal(copy(0x10_0000, 0x4000, 0x60_0000), 0x60_0000, "two neighbours");
      assert.equal(copy(0x10_0000, 0x1000, 0x70_0000, fromIoasId), 0x70_0000, "in itself");
      assert.equal(user.unmapAll(fd, fromIoasId), 0x6000);
      user.fails("ENOENT", () => copy(0x10_0000, 0x1000));
      user.fails(
        "ENOENT",
        () => iommufd.ioasUnmap(host, fd, { ioasId: toIoasId, iova: 0x60_0000, lengthBytes: 1 }),
        "what was two areas is two again",
      );
      assert.equal(
        iommufd.ioasUnmap(host, fd, { ioasId: toIoasId, iova: 0x60_0000, lengthBytes: 0x2000 }),
        0x2000,
      );
      assert.equal(user.unmapAll(fd, toIoasId), 0x3000);
    },
  ),
  deviceCase(
    "COPY fails with ENOENT over a hole, EEXIST where something is, EPERM for more rights, EINVAL and EOVERFLOW as MAP_FILE",
    (user) => {
      const { host } = user;
      const fd = user.iommufd();
      const src_ioas_id = threeAreas(user, fd);
      const dst_ioas_id = iommufd.ioasAlloc(host, fd);
      const file = user.memfd(PAGE_SIZE);
      iommufd.ioasMapFile(host, fd, {
        ...{ ioasId: src_ioas_id, fileFd: file, start: 0, lengthBytes: PAGE_SIZE },
        ...{ iova: 0x40_0000, writable: false },
      });
      const good = {
        ...{ src_ioas_id, dst_ioas_id, src_iova: 0x10_0000, length: PAGE_SIZE },
        ...{ flags: READ | FIXED, dst_iova: 0x80_0000 },
      };
      const copy = (value: object) =>
        user.request(fd, uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, { ...good, ...value });
      user.fails("EOPNOTSUPP", () => copy({ flags: READ | 8 }));
      user.fails("EINVAL", () => copy({ flags: FIXED }));
      user.fails("EINVAL", () => copy({ length: 0 }));
      user.fails("EOVERFLOW", () => copy({ length: U64_LAST }));
      user.fails("EOVERFLOW", () => copy({ src_iova: U64_LAST }));
      user.fails("EOVERFLOW", () => copy({ dst_iova: U64_LAST }));
      user.fails("EOVERFLOW", () => copy({ src_iova: 2n ** 64n - 4096n, length: 8192 }));
      user.fails("ENOENT", () => copy({ src_iova: 0x10_3000, length: 0x2000 }), "over a hole");
      user.fails("ENOENT", () => copy({ src_iova: 0xf_f000, length: 0x2000 }), "from a hole on");
      user.fails("ENOENT", () => copy({ src_ioas_id: NO_ID }));
      user.fails("ENOENT", () => copy({ dst_ioas_id: NO_ID }));
      user.fails("EPERM", () => copy({ src_iova: 0x40_0000, flags: READ | WRITE | FIXED }));
      copy({ src_iova: 0x40_0000 });
      user.fails("EEXIST", () => copy({}));
      assert.equal(user.unmapAll(fd, dst_ioas_id), PAGE_SIZE);
    },
  ),
  deviceCase(
    "IOVA_RANGES fails with EOPNOTSUPP for reserved bits, EMSGSIZE with the number, EFAULT without memory",
    (user) => {
      const fd = user.iommufd();
      const ioas_id = iommufd.ioasAlloc(user.host, fd);
      const layout = uapi.iommu_ioas_iova_ranges;
      const ask = (value: object) => user.request(fd, uapi.IOMMU_IOAS_IOVA_RANGES, layout, value);
      user.fails("EOPNOTSUPP", () => ask({ ioas_id, __reserved: 1 }));
      user.fails("EFAULT", () => ask({ ioas_id, num_iovas: 1 }));
      const bytes = new Uint8Array(layout.sizeBytes);
      const words = new ByteWords(bytes);
      words.store32(layout.offset.size, bytes.length);
      words.store32(layout.offset.ioas_id, ioas_id);
      user.fails("EMSGSIZE", () => user.host.ioctl(fd, uapi.IOMMU_IOAS_IOVA_RANGES, { bytes }));
      assert.equal(layout.read(words, 0).num_iovas, 1);
    },
  ),
  deviceCase("IOVA_RANGES without HWPT: everything, to the byte", (user) => {
    const fd = user.iommufd();
    const ioasId = iommufd.ioasAlloc(user.host, fd);
    const { ranges, alignment } = iommufd.iovaRanges(user.host, fd, ioasId);
    // 2^64 - 1 reads as 2^64.
    const last = user.expected(LAST_IOVA);
    assert.deepEqual({ ranges, alignment }, { ranges: [{ start: 0, last }], alignment: 1 });
  }),
  deviceCase("large mappings without an IOVA", (user) => {
    const fd = user.iommufd();
    const ioasId = iommufd.ioasAlloc(user.host, fd);
    const fileFd = user.memfd(4 * MIB);
    const map = () =>
      iommufd.ioasMapFile(user.host, fd, {
        ...{ ioasId, fileFd, start: 0, lengthBytes: 4 * MIB, writable: true },
      });
    assert.equal(map(), user.expected(AUTO_ALIGNMENT));
  }),
  deviceCase(
    "ALLOW_IOVAS says where room is found, and is no obstacle to what names its IOVA",
    (user) => {
      const { host } = user;
      const fd = user.iommufd();
      const ioasId = iommufd.ioasAlloc(host, fd);
      const fileFd = user.memfd(16 * PAGE_SIZE);
      const map = (lengthBytes: number, iova?: number) =>
        iommufd.ioasMapFile(host, fd, {
          ...{ ioasId, fileFd, start: 0, lengthBytes, writable: true },
          ...(iova === undefined ? {} : { iova }),
        });
      iommufd.ioasAllowIovas(host, fd, ioasId, [
        { start: 0x40_0000, last: 0x40_1fff },
        { start: 0x80_0000, last: 0x80_ffff },
      ]);
      assert.equal(map(PAGE_SIZE), 0x40_0000);
      assert.equal(map(2 * PAGE_SIZE), 0x80_0000, "no room in the first");
      assert.equal(map(PAGE_SIZE), 0x40_1000);
      assert.equal(map(PAGE_SIZE, 0x1_0000), 0x1_0000);
      user.fails("ENOSPC", () => map(16 * PAGE_SIZE));
      iommufd.ioasAllowIovas(host, fd, ioasId, []);
      assert.equal(map(16 * PAGE_SIZE), 0x2_0000, "everywhere again");
    },
  ),
  deviceCase(
    "ALLOW_IOVAS fails with EINVAL for ranges without two addresses or that overlap, EFAULT, EOPNOTSUPP, and keeps what was allowed",
    (user) => {
      const { host } = user;
      const fd = user.iommufd();
      const ioasId = iommufd.ioasAlloc(host, fd);
      const fileFd = user.memfd(PAGE_SIZE);
      iommufd.ioasAllowIovas(host, fd, ioasId, [{ start: 0x40_0000, last: 0x40_ffff }]);
      for (const ranges of [
        [{ start: 0x1000, last: 0x1000 }],
        [{ start: 0x2000, last: 0x1fff }],
        [
          { start: 0x1000, last: 0x2000 },
          { start: 0x2000, last: 0x3000 },
        ],
      ])
        user.fails("EINVAL", () => iommufd.ioasAllowIovas(host, fd, ioasId, ranges));
      const allow = (value: object) =>
        user.request(fd, uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.iommu_ioas_allow_iovas, {
          ...{ ioas_id: ioasId, ...value },
        });
      user.fails("EFAULT", () => allow({ num_iovas: 1 }));
      user.fails("EOPNOTSUPP", () => allow({ __reserved: 1 }));
      const iova = iommufd.ioasMapFile(host, fd, {
        ...{ ioasId, fileFd, start: 0, lengthBytes: PAGE_SIZE, writable: true },
      });
      assert.equal(iova, 0x40_0000);
    },
  ),
  deviceCase(
    "OPTION reads and sets what both kernels have, and fails with EOPNOTSUPP, EINVAL and EBUSY else",
    (user) => {
      const fd = user.iommufd();
      const option = (value: object) =>
        user.request(fd, uapi.IOMMU_OPTION, uapi.iommu_option, value).val64;
      const rlimit = { option_id: uapi.IOMMU_OPTION_RLIMIT_MODE };
      const huge = { option_id: uapi.IOMMU_OPTION_HUGE_PAGES };
      const [get, set] = [
        { op: uapi.IOMMU_OPTION_OP_GET },
        { op: uapi.IOMMU_OPTION_OP_SET, val64: 0 },
      ];
      assert.equal(option({ ...rlimit, ...get }), 0);
      assert.equal(option({ ...rlimit, ...set }), 0);
      user.fails("EINVAL", () => option({ ...rlimit, ...set, val64: 2 }));
      user.fails("EOPNOTSUPP", () => option({ ...rlimit, op: 2 }));
      user.fails("EOPNOTSUPP", () => option({ ...rlimit, ...get, object_id: 1 }));
      user.fails("EOPNOTSUPP", () => option({ option_id: 2, ...get }));
      user.fails("EOPNOTSUPP", () => option({ ...rlimit, ...get, __reserved: 1 }));
      const object_id = iommufd.ioasAlloc(user.host, fd);
      user.fails("EBUSY", () => option({ ...rlimit, ...set }), "an object exists");
      user.fails("EBUSY", () => option({ ...rlimit, ...set, val64: 2 }));
      assert.equal(option({ ...rlimit, ...get }), 0);
      assert.equal(option({ ...huge, ...get, object_id }), 1);
      assert.equal(option({ ...huge, ...set, object_id, val64: 1 }), 1);
      user.fails("EINVAL", () => option({ ...huge, ...set, object_id, val64: 2 }));
      user.fails("EOPNOTSUPP", () => option({ ...huge, op: 2, object_id }));
    },
  ),
  deviceCase("OPTION HUGE_PAGES forbids large pages and allows them again", (user) => {
    const fd = user.iommufd();
    const object_id = iommufd.ioasAlloc(user.host, fd);
    const huge = { option_id: uapi.IOMMU_OPTION_HUGE_PAGES, object_id };
    const get = () =>
      user.request(fd, uapi.IOMMU_OPTION, uapi.iommu_option, {
        ...{ ...huge, op: uapi.IOMMU_OPTION_OP_GET },
      }).val64;
    iommufd.ioasSetHugePages(user.host, fd, object_id, false);
    assert.equal(get(), 0);
    const file = user.memfd(PAGE_SIZE);
    user.fails("EINVAL", () => user.map(fd, object_id, { file, lengthBytes: 1 }), "whole pages");
    user.map(fd, object_id, { file, lengthBytes: PAGE_SIZE });
    iommufd.ioasSetHugePages(user.host, fd, object_id, true);
    assert.equal(get(), 1);
    user.map(fd, object_id, { file, lengthBytes: 1 });
    user.fails("EADDRINUSE", () => iommufd.ioasSetHugePages(user.host, fd, object_id, false));
    assert.equal(get(), 1);
  }),
  deviceCase("OPTION RLIMIT_MODE accounts pins to the process", (user) => {
    const fd = user.iommufd();
    const set = () =>
      user.request(fd, uapi.IOMMU_OPTION, uapi.iommu_option, {
        ...{ option_id: uapi.IOMMU_OPTION_RLIMIT_MODE, op: uapi.IOMMU_OPTION_OP_SET, val64: 1 },
      });
    assert.equal(user.outcome(set), user.expected(RLIMIT_MODE));
  }),
  deviceCase(
    "requests that want a device fail with ENOENT when there is none of that id",
    (user) => {
      const fd = user.iommufd();
      const pt_id = iommufd.ioasAlloc(user.host, fd);
      for (const dev_id of [0, NO_ID, pt_id]) {
        user.fails("ENOENT", () =>
          user.request(fd, uapi.IOMMU_HWPT_ALLOC, uapi.iommu_hwpt_alloc, { dev_id, pt_id }),
        );
        user.fails("ENOENT", () =>
          user.request(fd, uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id }),
        );
      }
    },
  ),
];

/** Areas at 1 MiB (two pages), right behind it (two), and after a hole (one). @returns the id of their IOAS */
function threeAreas(user: DeviceUser, fd: number): number {
  const ioasId = iommufd.ioasAlloc(user.host, fd);
  const fileFd = user.memfd(16 * PAGE_SIZE);
  for (const [iova, pages] of [
    [0x10_0000, 2],
    [0x10_2000, 2],
    [0x10_5000, 1],
  ])
    iommufd.ioasMapFile(user.host, fd, {
      ...{ ioasId, fileFd, start: 0, lengthBytes: pages * PAGE_SIZE, iova, writable: true },
    });
  return ioasId;
}
