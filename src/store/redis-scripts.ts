import { FIRST_NO_FORMAT, NEWEST_FORMAT } from "./codec.ts";
import { CHANGES_CHANNEL } from "./redis-feed.ts";

/** A hash per session, and a sorted set of session keys per user. */
export const SESSION_PREFIX = "coatcheck:session:";
export const USER_PREFIX = "coatcheck:user:";

/** In front of the names of attributes that have a field of their own. */
export const ATTRIBUTE_PREFIX = "a:";

const SESSION_KEY = `string.sub(KEYS[1], ${SESSION_PREFIX.length + 1})`;

/** A user who may not publish may still write: the others then hear of it from Redis alone. */
const tell = (what: string) => `redis.pcall('PUBLISH', '${CHANGES_CHANNEL}', ${what})`;

/** A payload in a format of a later version is left alone; see `SessionCodec`. */
const isNewer = (payload: string) =>
  `(${payload} and #${payload} > 0 and string.byte(${payload}) > ${NEWEST_FORMAT} and string.byte(${payload}) < ${FIRST_NO_FORMAT})`;

/**
 * Each write is one script on one key: it happens whole or not at all, and leaves no key without a TTL at any instant,
 * even when the gateway dies between two commands. KEYS[1] is the session, or the index in `indexSession`.
 *
 * Fields of a session: `v` version, `e` expiry, `t` last use (milliseconds since the epoch), `u` user id, `d` what the
 * codec made of the rest. With the layout `fields` also `l`, and each attribute as `a:NAME`.
 */
export const SCRIPTS = {
  /** ARGV: version, expiry, last use, user, payload, end of the key; then names and values of further fields. */
  createSession: `
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    redis.call('HSET', KEYS[1], 'v', ARGV[1], 'e', ARGV[2], 't', ARGV[3], 'u', ARGV[4], 'd', ARGV[5], unpack(ARGV, 7))
    redis.call('PEXPIREAT', KEYS[1], ARGV[6])
    return 1`,
  /**
   * ARGV: version read, version written, user, now, end of the key when the session retires (or 0), payload; then names
   * and values of further fields. Attributes that had a field and are not among them go.
   */
  commitSession: `
    local now = redis.call('HMGET', KEYS[1], 'v', 'e', 'u', 'l', 'd')
    if not now[1] or not now[2] or tonumber(now[2]) <= tonumber(ARGV[4]) or ${isNewer("now[5]")} then return -1 end
    if now[1] ~= ARGV[1] or now[3] ~= ARGV[3] then return 0 end
    if now[4] then
      local stay = {}
      for i = 7, #ARGV, 2 do stay[ARGV[i]] = true end
      for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
        if (field == 'l' or string.sub(field, 1, 2) == '${ATTRIBUTE_PREFIX}') and not stay[field] then
          redis.call('HDEL', KEYS[1], field)
        end
      end
    end
    redis.call('HSET', KEYS[1], 'v', ARGV[2], 'd', ARGV[6], unpack(ARGV, 7))
    local retires = tonumber(ARGV[5])
    if retires > 0 and retires < redis.call('PEXPIRETIME', KEYS[1]) then redis.call('PEXPIREAT', KEYS[1], ARGV[5]) end
    ${tell(`'changed ' .. ${SESSION_KEY}`)}
    return 1`,
  /**
   * Writes some attributes of a session that has a field for each. ARGV: version read, version written, user, now, how
   * many fields are removed, their names; then names and values of fields to write.
   * @returns -2 when the session has no fields for attributes.
   */
  changeSession: `
    local now = redis.call('HMGET', KEYS[1], 'v', 'e', 'u', 'l', 'd')
    if not now[1] or not now[2] or tonumber(now[2]) <= tonumber(ARGV[4]) or ${isNewer("now[5]")} then return -1 end
    if now[1] ~= ARGV[1] or now[3] ~= ARGV[3] then return 0 end
    if not now[4] then return -2 end
    local removed = tonumber(ARGV[5])
    if removed > 0 then redis.call('HDEL', KEYS[1], unpack(ARGV, 6, 5 + removed)) end
    redis.call('HSET', KEYS[1], 'v', ARGV[2], unpack(ARGV, 6 + removed))
    ${tell(`'changed ' .. ${SESSION_KEY}`)}
    return 1`,
  /** ARGV: expiry, now, end of the key. Not published: that a session lives longer makes no copy of it wrong. */
  touchSession: `
    local now = redis.call('HMGET', KEYS[1], 'e', 'd')
    if not now[1] or tonumber(now[1]) <= tonumber(ARGV[2]) or ${isNewer("now[2]")} then return 0 end
    redis.call('HSET', KEYS[1], 'e', ARGV[1], 't', ARGV[2])
    redis.call('PEXPIREAT', KEYS[1], ARGV[3])
    return 1`,
  /** ARGV: now. */
  destroySession: `
    if redis.call('EXISTS', KEYS[1]) == 0 then return false end
    local u = redis.pcall('HGET', KEYS[1], 'u')
    redis.call('UNLINK', KEYS[1])
    ${tell(`'ended ' .. ${SESSION_KEY} .. ' ' .. ARGV[1]`)}
    if type(u) == 'string' then return u end
    return ''`,
  /** ARGV: score, member, now, end. The set lives as long as its longest session. */
  indexSession: `
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
    redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
    if redis.call('PEXPIRETIME', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIREAT', KEYS[1], ARGV[4]) end
    return 1`,
} as const;

/**
 * A token bucket in one number: the moment at which it will be full again, by the clock of Redis, in microseconds (the
 * generic cell rate algorithm). In place of the library's own script, which counts in fixed windows and lets twice the
 * quota pass around their edge. What is emptier than empty was left by a slower rule, before a reload: it fills at the new rate.
 *
 * The name is the library's. It defines the command once more, with the same script, but too late for a pipeline that is open
 * at that moment: ioredis would end the process over a command that a pipeline does not know.
 *
 * ARGV: tokens to take, nothing that is used, tokens in a full bucket, microseconds in which an empty one is full again.
 * @returns tokens taken, or one more than there are; and milliseconds until there is one again.
 */
export const BUCKET_SCRIPTS = {
  rlflxIncr: `
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local burst, window = tonumber(ARGV[3]), tonumber(ARGV[4])
  local interval = window / burst
  local full = tonumber(redis.call('GET', KEYS[1]) or '') or now
  if full < now then full = now end
  if full > now + window then
    full = now + window
    redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil(window / 1000))
  end
  local after = full + interval * tonumber(ARGV[1])
  if after > now + window then return { burst + 1, math.ceil((after - now - window) / 1000) } end
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
  return { math.ceil((after - now) / interval), 0 }`,
} as const;
