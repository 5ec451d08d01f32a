import { invalidArgument } from '../../errors/cri-error.ts'

/** What the configuration file says; empty strings: nothing. */
export interface TracingFileSettings {
  /** The collector's base URL; `/v1/traces` is added. */
  readonly endpoint: string
  readonly headers: Readonly<Record<string, string>>
  readonly serviceName: string
  readonly sampler: string
  readonly samplerArg: string
  /** 0: not set. */
  readonly timeoutMs: number
}

export interface TracingSettings {
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly resource: Readonly<Record<string, string>>
  readonly sampler: string
  readonly samplerArg: string
  readonly timeoutMs: number
  /** What is worth saying of the variables, for the log. */
  readonly remarks: readonly string[]
}

type Environment = Readonly<Record<string, string | undefined>>

const defaultTimeoutMs = 10_000

/**
 * The settings of the file, completed by the standard OTEL_* variables; undefined when no endpoint is given anywhere, or when OTEL_SDK_DISABLED or
 * OTEL_TRACES_EXPORTER=none says so. What the file gives goes before the environment. INVALID_ARGUMENT names the setting that is wrong.
 */
export function tracingSettings(file: TracingFileSettings, env: Environment): TracingSettings | undefined {
  const variable = (name: string): string => env[name]?.trim() ?? ''
  const of = (name: string): string => variable(`OTEL_EXPORTER_OTLP_TRACES_${name}`) || variable(`OTEL_EXPORTER_OTLP_${name}`)
  if (variable('OTEL_SDK_DISABLED').toLowerCase() === 'true' || variable('OTEL_TRACES_EXPORTER') === 'none') return undefined
  const whole = file.endpoint === '' ? variable('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT') : ''
  const base = file.endpoint || variable('OTEL_EXPORTER_OTLP_ENDPOINT')
  if (whole === '' && base === '') return undefined
  const remarks: string[] = []
  const protocol = of('PROTOCOL')
  if (protocol === 'grpc') throw invalidArgument('OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported: spans are sent by OTLP over HTTP; name the collector\'s HTTP port (4318) and set http/json')
  if (protocol !== '' && protocol !== 'http/json') remarks.push(`OTEL_EXPORTER_OTLP_PROTOCOL=${protocol}: JSON is sent, to the same port`)
  return {
    url: whole === '' ? withTracesPath(base) : urlOf(whole),
    headers: { ...keyValues(variable('OTEL_EXPORTER_OTLP_HEADERS'), 'OTEL_EXPORTER_OTLP_HEADERS'), ...keyValues(variable('OTEL_EXPORTER_OTLP_TRACES_HEADERS'), 'OTEL_EXPORTER_OTLP_TRACES_HEADERS'), ...file.headers },
    resource: {
      'service.name': 'cri-shim', ...keyValues(variable('OTEL_RESOURCE_ATTRIBUTES'), 'OTEL_RESOURCE_ATTRIBUTES'),
      ...named('service.name', file.serviceName || variable('OTEL_SERVICE_NAME')),
    },
    sampler: file.sampler || variable('OTEL_TRACES_SAMPLER') || 'parentbased_always_on',
    samplerArg: file.sampler === '' ? file.samplerArg || variable('OTEL_TRACES_SAMPLER_ARG') : file.samplerArg,
    timeoutMs: file.timeoutMs || timeoutOf(of('TIMEOUT')),
    remarks,
  }
}

function named(name: string, value: string): Record<string, string> {
  return value === '' ? {} : { [name]: value }
}

/** The URL may hold credentials: it is not repeated. */
function urlOf(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url?.protocol === 'http:' || url?.protocol === 'https:') return url
  throw invalidArgument('the endpoint for traces must be a URL such as http://127.0.0.1:4318')
}

function withTracesPath(text: string): URL {
  const url = urlOf(text)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/v1/traces`
  return url
}

function timeoutOf(text: string): number {
  if (text === '') return defaultTimeoutMs
  const ms = Number(text)
  if (!Number.isFinite(ms) || ms <= 0) throw invalidArgument(`OTEL_EXPORTER_OTLP_TIMEOUT must be a number of milliseconds above 0, not ${JSON.stringify(text)}`)
  return ms
}

/** `key1=value1,key2=value2`, the values percent-encoded. They may be secrets: an error does not repeat them. */
function keyValues(text: string, name: string): Record<string, string> {
  const pairs: Record<string, string> = {}
  for (const part of text.split(',').filter((each) => each.trim() !== '')) {
    const at = part.indexOf('=')
    try {
      if (at <= 0) throw new Error('no key')
      pairs[part.slice(0, at).trim()] = decodeURIComponent(part.slice(at + 1).trim())
    } catch {
      throw invalidArgument(`${name} must be key=value pairs with commas between them, values percent-encoded`)
    }
  }
  return pairs
}
