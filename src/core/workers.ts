/** Words for what workers do, and how they end. */

/** `waiting`: for the end of the pause after which it is started again. */
export const WORKER_STATES = ["starting", "serving", "draining", "waiting"] as const;
export type WorkerState = (typeof WORKER_STATES)[number];

/**
 * How a worker ended unasked: by a signal, by a failure, in peace, or before it was ready.
 */
export const WORKER_ENDS = ["killed", "crashed", "exited", "not_started"] as const;
export type WorkerEnd = (typeof WORKER_ENDS)[number];
