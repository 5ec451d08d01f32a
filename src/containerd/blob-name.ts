/** What a blob's file is called. Undefined for a digest that no store has. */
export function blobName(digest: string): { readonly algorithm: string; readonly hex: string } | undefined {
  const [, algorithm, hex] = /^(sha256|sha384|sha512):([0-9a-f]+)$/.exec(digest) ?? []
  return algorithm === undefined || hex === undefined ? undefined : { algorithm, hex }
}
