/**
 * Message-signalled interrupts of VFIO devices, to an eventfd: SET_IRQS and real interrupts of the edu.
 *
 * Source: Linux 7.3 drivers/vfio/pci/vfio_pci_intrs.c, drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare()
 * @module
 */
import assert from "node:assert/strict";
import { EDU_IRQ_ACK, EDU_IRQ_RAISE, EDU_IRQ_STATUS } from "../../../src/abi/edu.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../../src/abi/pci.ts";
import { EFD_NONBLOCK } from "../../../src/abi/uapi/fs.ts";
import * as uapi from "../../../src/abi/uapi/vfio.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import { PAGE_SIZE } from "../../../src/base/units.ts";
import * as vfio from "../../../src/host/vfio.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import {
  IRQS_LEFT_BY_FAILURE,
  LATE_EVENTFD,
  OTHER_IRQS,
  STRAY_MSI,
} from "../device-divergences.ts";
import { type BoundDevice, type DeviceUser, deviceCase, NO_FD } from "../device-user.ts";

const { VFIO_IRQ_SET_DATA_NONE: NONE, VFIO_IRQ_SET_DATA_BOOL: BOOL } = uapi;
const { VFIO_IRQ_SET_DATA_EVENTFD: EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER: TRIGGER } = uapi;
/** Longer than an interrupt takes anywhere. */
const INTERRUPT_NS = 2e9;
/** How long nothing must come. */
const SILENCE_NS = 50e6;
const STEP_NS = 2e6;

/** SET_IRQS of the MSI index with any header, and its values. */
function setIrqs(
  user: DeviceUser,
  fd: number,
  header: Readonly<Partial<Record<"argsz" | "flags" | "index" | "start" | "count", number>>>,
  data: Uint8Array = new Uint8Array(0),
): void {
  user.request(
    fd,
    uapi.VFIO_DEVICE_SET_IRQS,
    uapi.vfio_irq_set,
    { index: uapi.VFIO_PCI_MSI_IRQ_INDEX, ...header },
    { tail: data },
  );
}

function s32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new ByteWords(bytes).store32(0, value >>> 0);
  return bytes;
}

/** Takes an eventfd's count; 0 when there is none. */
function take(user: DeviceUser, eventfd: number): number {
  const bytes = new Uint8Array(8);
  const outcome = user.outcome(() => user.host.read(eventfd, bytes));
  assert(outcome === "ok" || outcome === "EAGAIN", outcome);
  return new ByteWords(bytes).load32(0);
}

/** Waits for a count. */
function wait(user: DeviceUser, eventfd: number): number {
  const endNs = user.host.clockNs() + INTERRUPT_NS;
  for (;;) {
    const count = take(user, eventfd);
    if (count > 0) return count;
    assert.ok(user.host.clockNs() < endNs, "an interrupt comes");
    user.host.sleep(STEP_NS);
  }
}

/** Sleeps on, whatever comes. */
function pass(user: DeviceUser, durationNs: number): void {
  const endNs = user.host.clockNs() + durationNs;
  while (user.host.clockNs() < endNs) user.host.sleep(STEP_NS);
}

/** Waits for a while in which nothing may come. */
function hearsNothing(user: DeviceUser, eventfd: number): void {
  pass(user, SILENCE_NS);
  assert.equal(take(user, eventfd), 0);
}

/** An edu that may send its interrupts: they are DMA. */
function interrupting(user: DeviceUser): BoundDevice & { raise(): void } {
  const edu = user.bound(user.edu);
  const config = vfio.openRegion(user.host, edu.fd, uapi.VFIO_PCI_CONFIG_REGION_INDEX);
  config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  const bar = vfio.openRegion(user.host, edu.fd, 0);
  const raise = () => {
    bar.write32(EDU_IRQ_RAISE, 1);
    assert.equal(bar.read32(EDU_IRQ_STATUS), 1);
    bar.write32(EDU_IRQ_ACK, 1);
  };
  return { ...edu, raise };
}

export const INTERRUPT_CASES: readonly ConformanceCase[] = [
  deviceCase(
    "SET_IRQS fails with EINVAL for headers that contradict themselves or the device",
    (user) => {
      const { fd } = user.bound(user.edu);
      const eventfd = s32(user.eventfd(EFD_NONBLOCK));
      const good = { flags: EVENTFD | TRIGGER, count: 1 };
      const wrong = (header: object, data = eventfd) =>
        user.fails(
          "EINVAL",
          () => setIrqs(user, fd, { ...good, ...header }, data),
          JSON.stringify(header),
        );
      wrong({ argsz: 19 });
      wrong({ argsz: 23 });
      wrong({ index: 5 });
      wrong({ index: 2 });
      wrong({ start: 1 });
      wrong({ count: 2 }, new Uint8Array(8));
      wrong({ start: 0xffff_ffff });
      wrong({ count: 0xffff_ffff });
      wrong({ flags: EVENTFD | TRIGGER | 0x40 });
      wrong({ flags: EVENTFD | BOOL | TRIGGER });
      wrong({ flags: TRIGGER });
      setIrqs(user, fd, good, eventfd);
    },
  ),
  deviceCase(
    "SET_IRQS fails with ENOTTY for what MSI cannot do, EBADF and EINVAL for what is no eventfd",
    (user) => {
      const { fd } = user.bound(user.edu);
      const eventfd = s32(user.eventfd(EFD_NONBLOCK));
      const set = (flags: number, data: Uint8Array) => setIrqs(user, fd, { flags, count: 1 }, data);
      for (const action of [0, uapi.VFIO_IRQ_SET_ACTION_MASK, uapi.VFIO_IRQ_SET_ACTION_UNMASK])
        user.fails("ENOTTY", () => set(EVENTFD | action, eventfd));
      user.fails("ENOTTY", () => set(EVENTFD | TRIGGER | uapi.VFIO_IRQ_SET_ACTION_MASK, eventfd));
      user.fails("EBADF", () => set(EVENTFD | TRIGGER, s32(NO_FD)));
      user.fails("EINVAL", () => set(EVENTFD | TRIGGER, s32(fd)));
      user.fails(
        "EINVAL",
        () => setIrqs(user, fd, { flags: NONE | TRIGGER, count: 1 }),
        "MSI is off",
      );
    },
  ),
  deviceCase("SET_IRQS fails with EINVAL for MSI that is off, but to enable it", (user) => {
    const { fd } = user.bound(user.edu);
    user.fails("EINVAL", () => setIrqs(user, fd, { flags: NONE | TRIGGER, count: 0 }), "disable");
    user.fails("EINVAL", () => setIrqs(user, fd, { flags: NONE | TRIGGER, count: 1 }));
    user.fails("EINVAL", () =>
      setIrqs(user, fd, { flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(1)),
    );
    setIrqs(user, fd, { flags: EVENTFD | TRIGGER, count: 1 }, s32(-1));
    setIrqs(user, fd, { flags: NONE | TRIGGER, count: 0 });
    user.fails("EINVAL", () => setIrqs(user, fd, { flags: NONE | TRIGGER, count: 0 }), "again");
  }),
  deviceCase(
    "SET_IRQS with no eventfds enables nothing, and changes nothing when MSI is on",
    (user) => {
      const { fd } = user.bound(user.edu);
      const nothing = () => setIrqs(user, fd, { flags: EVENTFD | TRIGGER, count: 0 });
      user.fails("ERANGE", nothing);
      const eventfd = user.eventfd(EFD_NONBLOCK);
      vfio.setMsiEventfd(user.host, fd, eventfd);
      nothing();
      setIrqs(user, fd, { flags: NONE | TRIGGER, count: 1 });
      assert.equal(take(user, eventfd), 1);
    },
  ),
  deviceCase("SET_IRQS triggers an interrupt itself, to try the eventfd", (user) => {
    const { fd } = user.bound(user.edu);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    setIrqs(user, fd, { flags: NONE | TRIGGER, count: 1 });
    setIrqs(user, fd, { flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(1));
    setIrqs(user, fd, { flags: BOOL | TRIGGER, count: 1 }, Uint8Array.of(0));
    setIrqs(user, fd, { flags: BOOL | TRIGGER, count: 0 });
    assert.equal(take(user, eventfd), 2);
  }),
  deviceCase("a device's interrupt is counted by its eventfd, as often as it comes", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    for (let i = 0; i < 3; i++) {
      raise();
      assert.equal(wait(user, eventfd), 1);
    }
  }),
  deviceCase("interrupts go to the eventfd that was set last", (user) => {
    const { fd, raise } = interrupting(user);
    const [one, other] = [user.eventfd(EFD_NONBLOCK), user.eventfd(EFD_NONBLOCK)];
    vfio.setMsiEventfd(user.host, fd, one);
    vfio.setMsiEventfd(user.host, fd, other);
    raise();
    assert.equal(wait(user, other), 1);
    assert.equal(take(user, one), 0);
  }),
  deviceCase("MSI that is disabled is heard no more, and can be enabled again", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    vfio.disableMsi(user.host, fd);
    raise();
    hearsNothing(user, eventfd);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    assert.equal(take(user, eventfd), 0, "what came meanwhile is gone");
    raise();
    assert.equal(wait(user, eventfd), 1);
  }),
  deviceCase("the eventfd lives as long as the device has it", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    const same = user.dup(eventfd);
    user.close(eventfd);
    raise();
    assert.equal(wait(user, same), 1);
  }),
  deviceCase("an interrupt that comes while MSI is on and nobody is told", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, -1);
    raise();
    hearsNothing(user, eventfd);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    assert.equal(wait(user, eventfd), 1, "is told to the first who listens");
    raise();
    assert.equal(wait(user, eventfd), 1);
  }),
  deviceCase("an interrupt that comes while the eventfd is taken away", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    vfio.setMsiEventfd(user.host, fd, -1);
    raise();
    hearsNothing(user, eventfd);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    pass(user, SILENCE_NS);
    assert.equal(take(user, eventfd), user.expected(LATE_EVENTFD));
    raise();
    assert.equal(wait(user, eventfd), 1);
  }),
  deviceCase(
    "an interrupt that comes while the eventfd is taken away, and memory at IOVA 0",
    (user) => {
      const { fd, iommufd, raise } = interrupting(user);
      const eventfd = user.eventfd(EFD_NONBLOCK);
      const file = user.memfd(PAGE_SIZE);
      user.host.pwrite(file, new Uint8Array(8).fill(0xff), 0);
      vfio.attach(user.host, fd, user.ioasOf(iommufd, file, 0, PAGE_SIZE));
      vfio.setMsiEventfd(user.host, fd, eventfd);
      vfio.setMsiEventfd(user.host, fd, -1);
      raise();
      hearsNothing(user, eventfd);
      const bytes = new Uint8Array(8);
      user.host.pread(file, bytes, 0);
      assert.deepEqual([...bytes], user.expected(STRAY_MSI));
    },
  ),
  deviceCase("SET_IRQS that fails on its eventfd while another is set", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    user.fails("EBADF", () => vfio.setMsiEventfd(user.host, fd, NO_FD));
    raise();
    pass(user, SILENCE_NS);
    assert.equal(take(user, eventfd), user.expected(IRQS_LEFT_BY_FAILURE));
  }),
  deviceCase("interrupts of a device without bus mastering stay away", (user) => {
    const { fd, raise } = interrupting(user);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.setMsiEventfd(user.host, fd, eventfd);
    const config = vfio.openRegion(user.host, fd, uapi.VFIO_PCI_CONFIG_REGION_INDEX);
    config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY);
    raise();
    hearsNothing(user, eventfd);
  }),
  deviceCase("interrupts that are no MSI", (user) => {
    const { fd } = user.bound(user.edu);
    const counts = [0, 2, 3, 4].map((index) => vfio.irqInfo(user.host, fd, index).count);
    assert.deepEqual(counts, user.expected(OTHER_IRQS));
  }),
];
