/** What a command of `holdfast` is. @module */

export interface Command {
  readonly name: string;
  /** One line, for the list of commands. */
  readonly summary: string;
  /** The whole help text. */
  readonly help: string;
  /** It goes on when nobody reads its output any more. Default: a reader that has seen enough ends it. */
  readonly outlivesReader?: boolean;
  /**
   * @param args - what follows the command's name
   * @returns the exit status
   * @throws {UsageError} when the arguments are wrong: exit status 2
   */
  run(args: readonly string[]): Promise<number>;
}
