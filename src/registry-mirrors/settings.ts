import type { Headers } from './registry-host.ts'

/** Credentials as config.toml has them under registry.configs.HOST.auth and registry.auths.URL. */
export interface AuthSettings {
  readonly username?: string | undefined
  readonly password?: string | undefined
  /** base64 of `username:password` */
  readonly auth?: string | undefined
  readonly identityToken?: string | undefined
}

/** registry.configs.HOST.tls of containerd 1.x; paths are absolute. */
export interface TlsSettings {
  readonly insecureSkipVerify?: boolean | undefined
  readonly caFile?: string | undefined
  readonly certFile?: string | undefined
  readonly keyFile?: string | undefined
}

/** The registry part of the settings. All but `configPath` and `headers` is deprecated in containerd, and still met in the field. */
export interface RegistrySettings {
  /** Directories of `<host>/hosts.toml`, the first that knows the host decides. */
  readonly configPath: readonly string[]
  /** Sent with every request to every registry. */
  readonly headers: Headers
  /** Endpoints by registry, `*` for all others. Not looked at when `configPath` is set. */
  readonly mirrors: Readonly<Record<string, { readonly endpoint: readonly string[] }>>
  readonly configs: Readonly<Record<string, { readonly auth?: AuthSettings | undefined; readonly tls?: TlsSettings | undefined }>>
  /** Credentials by endpoint URL. */
  readonly auths: Readonly<Record<string, AuthSettings>>
}

/** Nothing configured: every registry is spoken to directly. */
export const noRegistrySettings: RegistrySettings = { configPath: [], headers: {}, mirrors: {}, configs: {}, auths: {} }
