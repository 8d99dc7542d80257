/**
 * Failed allocations on Linux: /proc/thread-self/fail-nth.
 *
 * Why of the thread: a system call that Node makes synchronously runs on the thread that wrote there, and nothing else
 * of the machine fails.
 * Source: Linux 7.3 Documentation/fault-injection/fault-injection.rst
 * @module
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { O_RDWR, O_WRONLY } from "../../src/abi/uapi/fs.ts";
import type { Host } from "../../src/host/host.ts";
import type { AllocationFaults } from "./conformance-case.ts";

const DEBUGFS = "/sys/kernel/debug";
/** As it is, only allocations that must not sleep fail, only those of several pages, and each is told on the console. */
const SETTINGS: readonly (readonly [path: string, value: string])[] = [
  ["failslab/ignore-gfp-wait", "N"],
  ["failslab/verbose", "0"],
  ["fail_page_alloc/ignore-gfp-wait", "N"],
  ["fail_page_alloc/min-order", "0"],
  ["fail_page_alloc/verbose", "0"],
  // What iommufd fails for its own tests' sake.
  ["fail_iommufd/verbose", "0"],
];

/** Full collections are slow, and one in so many calls keeps V8 from beginning one by itself. */
const CALLS_OF_FULL_COLLECTION = 32;

type Collector = (options: { readonly type: "minor" | "major" }) => void;

/**
 * V8 must not collect garbage while allocations fail: it takes memory for that by mmap(2), and dies when it gets none. So it is
 * collected just before.
 */
function collector(): () => void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as Collector;
  let calls = 0;
  return () => {
    const isFull = calls++ % CALLS_OF_FULL_COLLECTION === 0;
    collect({ type: isFull ? "major" : "minor" });
  };
}

/**
 * Makes any allocation of the calls of this thread fail when it is asked to.
 * @throws {KernelError} ENOENT the kernel has no fault injection (CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC,
 *   CONFIG_IOMMUFD_TEST, debugfs)
 */
export function linuxAllocationFaults(host: Host): AllocationFaults {
  for (const [path, value] of SETTINGS) {
    const fd = host.open(`${DEBUGFS}/${path}`, O_WRONLY);
    host.write(fd, new TextEncoder().encode(value));
    host.close(fd);
  }
  const failNth = host.open("/proc/thread-self/fail-nth", O_RDWR);
  const off = new TextEncoder().encode("0");
  const left = new Uint8Array(16);
  const collectGarbage = collector();
  return {
    during(nth, action) {
      const word = new TextEncoder().encode(`${nth}`);
      collectGarbage();
      host.pwrite(failNth, word, 0);
      try {
        action();
      } finally {
        const length = host.pread(failNth, left, 0);
        host.pwrite(failNth, off, 0);
        left.fill(0, length);
      }
      // What is left to pass: nothing, once it has failed.
      return Number.parseInt(new TextDecoder().decode(left), 10) === 0;
    },
  };
}
