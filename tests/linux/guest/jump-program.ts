/**
 * Ends the kernel for one like it: `jump-program.js [KERNEL PARAMETERS]`, which are added to those of the present one.
 * @module
 */
import { LINUX_REBOOT_CMD_KEXEC } from "../../../src/abi/uapi/reboot.ts";
import { LinuxHost } from "../../../src/linux/linux-host.ts";

const host = new LinuxHost();
const line = [host.commandLine, ...process.argv.slice(2)].join(" ");
host.kexecFileLoad(`/boot/vmlinuz-${host.release}`, `/boot/initrd.img-${host.release}`, line);
host.reboot(LINUX_REBOOT_CMD_KEXEC);
