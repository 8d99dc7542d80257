/** Loaded before a service by service-manager.ts: the descriptors are for this process. @module */

process.env["LISTEN_PID"] = String(process.pid);
