/** The public API: a gateway inside another program, and what a store of one's own has to do. */

export type { Config } from "./config/compile.ts";
export { loadConfig, loadConfigFile, loadConfigText } from "./config/load.ts";
export { ConfigError } from "./config/problems.ts";
export { type ErrorCode, ProxyError, storeUnavailable } from "./core/errors.ts";
export type { Json, JsonObject } from "./core/json.ts";
export type { ReloadCause, ReloadOutcome, ReloadResult } from "./core/reload.ts";
export {
  type AttributeChanges,
  type FindResult,
  judge,
  type Session,
  type SessionClient,
  type SessionData,
  type SessionKey,
  type SessionUser,
} from "./core/session.ts";
export type {
  AttributeResult,
  ChangeListener,
  CommitOutcome,
  FeedState,
  MaybePromise,
  ScanOptions,
  ScanPage,
  SessionEntry,
  SessionStore,
  StoreCheck,
  StoreFact,
  StoreInspection,
} from "./core/store.ts";
export { Gateway, type GatewayOptions } from "./gateway.ts";
export { ListenError } from "./listening.ts";
export type { LogDestination } from "./observe/logging.ts";
export type { ConfigSource } from "./reloader.ts";
export { AttributesByCommit } from "./store/attributes.ts";
export { SessionCodec, type SessionCodecOptions } from "./store/codec.ts";
export type { CustomStoreOptions, OpenCustomStore } from "./store/custom.ts";
export { VERSION } from "./version.ts";
