/** Numbers of SPDY/3 and SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 and its 3.1 revision). */
export const SPDY_VERSION = 3

export const FrameType = { SYN_STREAM: 1, SYN_REPLY: 2, RST_STREAM: 3, SETTINGS: 4, PING: 6, GOAWAY: 7, HEADERS: 8, WINDOW_UPDATE: 9 } as const

/** FLAG_FIN of DATA, SYN_STREAM, SYN_REPLY and HEADERS; FLAG_UNIDIRECTIONAL of SYN_STREAM. */
export const FLAG_FIN = 0x01
export const FLAG_UNIDIRECTIONAL = 0x02

/** Status codes of RST_STREAM. */
export const RstStatus = {
  PROTOCOL_ERROR: 1,
  INVALID_STREAM: 2,
  REFUSED_STREAM: 3,
  UNSUPPORTED_VERSION: 4,
  CANCEL: 5,
  INTERNAL_ERROR: 6,
  FLOW_CONTROL_ERROR: 7,
  STREAM_IN_USE: 8,
  STREAM_ALREADY_CLOSED: 9,
  FRAME_TOO_LARGE: 11,
} as const

/** Status codes of GOAWAY. */
export const GoAwayStatus = { OK: 0, PROTOCOL_ERROR: 1, INTERNAL_ERROR: 2 } as const

/** Ids of SETTINGS that mean something here. */
export const SettingsId = { MAX_CONCURRENT_STREAMS: 4, INITIAL_WINDOW_SIZE: 7 } as const

/** The window of a stream and of the connection before anything was said about it, in bytes. */
export const DEFAULT_WINDOW_BYTES = 65_536
export const MAX_WINDOW_BYTES = 0x7fff_ffff
export const MAX_STREAM_ID = 0x7fff_ffff
export const FRAME_HEADER_BYTES = 8

/** The name of a number in one of the tables above, for messages. */
export function nameIn(table: Readonly<Record<string, number>>, value: number): string {
  return Object.entries(table).find(([, number]) => number === value)?.[0] ?? String(value)
}
