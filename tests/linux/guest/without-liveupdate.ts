/**
 * Loaded before the agent: whatever it loads for the jump is booted without live update, as by a boot loader that has another
 * command line than the agent was told.
 * @module
 */
import { LinuxHost } from "../../../src/linux/linux-host.ts";

const load = LinuxHost.prototype.kexecFileLoad;
LinuxHost.prototype.kexecFileLoad = function (kernel, initrd, commandLine) {
  load.call(this, kernel, initrd, commandLine.replace("liveupdate=on", "liveupdate=off"));
};
