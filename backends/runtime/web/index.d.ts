/* Written by Secateur. */

/** The model's inputs: typed arrays in row-major order. */
export interface Inputs {
  /* inputs */
}

/** The model's outputs: typed arrays in row-major order. */
export interface Outputs {
  /* outputs */
}

export interface Tensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly length: number;
}

export type Variant = "relaxed" | "simd";

export interface Options {
  /** Where the model's files lie: the URL of their folder. Unless told: beside this module. */
  base?: string | URL;
  /** The code from elsewhere: a URL, or bytes (then `variant` says which); for one thread unless `threads` is given. */
  code?: string | URL | ArrayBuffer | ArrayBufferView;
  /** The weights from elsewhere: a URL, or bytes. */
  weights?: string | URL | ArrayBuffer | ArrayBufferView;
  /** Which code: relaxed SIMD where the engine has it ("auto"), or one of both. */
  variant?: "auto" | Variant;
  /** Check hashes: false for never; true to insist (an error where the engine offers none, as on plain http pages). */
  verify?: boolean;
  /**
   * On how many threads to run at most, from 1 to 64; 4, or as many as there are processors, unless told. One where the
   * package has no code for threads, and where memory cannot be shared: in pages that are not isolated.
   */
  threads?: number;
  /** Stops a load that is under way. */
  signal?: AbortSignal;
}

/**
 * What went wrong. Codes: E_INPUT (an input is missing, unknown, of another type or length), E_CLOSED (disposed),
 * E_ARTIFACT (a file is missing, cut short or altered), E_TARGET (the engine lacks a feature), E_MEMORY, E_RUN,
 * E_THREADS (a worker cannot be started), E_OPTION.
 */
export class SecateurError extends Error {
  readonly code: string;
}

export interface Model {
  readonly name: string;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  readonly variant: Variant;
  /** How many threads a run is shared among, the one that calls it included. */
  readonly threads: number;
  /** Bytes of memory that the model holds; 0 when disposed. */
  readonly bytes: number;
  run(inputs: Inputs): Promise<Outputs>;
  /** Gives the memory back and ends the threads. */
  dispose(): void;
}

export const inputs: readonly Tensor[];
export const outputs: readonly Tensor[];

/** What this engine can run; null without WebAssembly SIMD. */
export function supported(): Variant | null;

/** Zeros of a tensor's type and length: an array to fill and to give to `run`. */
export function zeros(tensor: Tensor): Inputs[keyof Inputs];

/** Loads the model: from beside this module, from the folder at a URL, or as the options say. */
export function load(source?: string | URL | Options): Promise<Model>;
