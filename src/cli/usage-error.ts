/** A command line that cannot be run: one line for the user, exit status 2. @module */

export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}
