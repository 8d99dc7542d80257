/**
 * Runs the cases of one stage on the Linux that it is on, prints each result, and jumps when it is told to.
 *
 * Usage: linux-program.js STAGE. Prints `result JSON` for each case and `done`; a line on standard input makes it end
 * this kernel for another like it, which is to happen in this process: it holds the sessions.
 * @module
 */
import { LINUX_REBOOT_CMD_KEXEC } from "../../src/abi/uapi/reboot.ts";
import { LinuxHost } from "../../src/linux/linux-host.ts";
import { linuxAllocationFaults } from "./linux-faults.ts";
import { RESULT_MARK, STAGE_DONE } from "./linux-report.ts";
import { loadNextKernel, runStage } from "./stage-run.ts";
import { CASES } from "./suite.ts";

const host = new LinuxHost();

const { release, commandLine } = host;
const place = {
  kernel: "linux" as const,
  host,
  faults: linuxAllocationFaults(host),
  nextKernel: {
    kernel: `/boot/vmlinuz-${release}`,
    initrd: `/boot/initrd.img-${release}`,
    commandLine,
  },
};
for (const result of runStage(place, CASES, Number(process.argv[2]), () => performance.now()))
  host.print(`${RESULT_MARK}${JSON.stringify(result)}`);
host.print(STAGE_DONE);

process.stdin.once("data", () => {
  loadNextKernel(place);
  host.reboot(LINUX_REBOOT_CMD_KEXEC);
});
