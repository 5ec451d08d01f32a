import { type DestinationStream, type Logger, pino } from 'pino'

export type { Logger } from 'pino'

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const
export type LogLevel = (typeof logLevels)[number]

/** Anything that looks like a credential is cut out, whatever object it is logged in. */
const redacted = ['auth', 'password', 'identity_token', 'registry_token', 'authorization', 'token'].flatMap((key) => [key, `*.${key}`, `*.*.${key}`])

/** JSON lines on standard output (the journal adds its own time stamp, other readers need ours). */
export function createLogger(level: LogLevel, destination?: DestinationStream): Logger {
  const options = {
    level,
    base: null,
    timestamp: (): string => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: (label: string) => ({ level: label }) },
    redact: { paths: redacted, censor: '[redacted]' },
  }
  return destination === undefined ? pino(options) : pino(options, destination)
}

/** The next level of a round trip info → debug → trace → info, for SIGUSR1. */
export function nextLevel(level: string): LogLevel {
  if (level === 'debug') return 'trace'
  if (level === 'trace') return 'info'
  return 'debug'
}
