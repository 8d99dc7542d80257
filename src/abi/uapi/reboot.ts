/**
 * Commands of reboot(2).
 *
 * Source: Linux 7.3 include/uapi/linux/reboot.h
 * @module
 */

/** Ends the kernel and the machine. */
export const LINUX_REBOOT_CMD_POWER_OFF = 0x4321fedc;
/** Enters the kernel that kexec_file_load(2) has loaded. */
export const LINUX_REBOOT_CMD_KEXEC = 0x45584543;
/** Resets the machine through firmware. */
export const LINUX_REBOOT_CMD_RESTART = 0x01234567;
