import type { HostCredentials, RegistryAuth, RegistrySettings as ConfiguredRegistries, RegistryTls } from '../config/settings.ts'

export type AuthSettings = Partial<RegistryAuth>
export type TlsSettings = Partial<RegistryTls>

/**
 * The registry part of the settings, of which each may be left out that says nothing. All but `configPath` and `headers` is deprecated
 * in containerd, and still met in the field; `mirrors` and `configs.tls` are not looked at when `configPath` is set.
 */
export interface RegistrySettings extends Pick<ConfiguredRegistries, 'configPath' | 'headers' | 'mirrors'> {
  readonly configs: Readonly<Record<string, { readonly auth?: AuthSettings; readonly tls?: TlsSettings }>>
  readonly auths: Readonly<Record<string, AuthSettings>>
  /** By host with its port, `*.example.com` or `*`. */
  readonly credentials?: Readonly<Record<string, Partial<HostCredentials>>>
  /** Empty: helpers are looked for in PATH. */
  readonly credentialHelperDir?: string
}

/** Nothing configured: every registry is spoken to directly. */
export const noRegistrySettings: RegistrySettings = { configPath: [], headers: {}, mirrors: {}, configs: {}, auths: {} }
