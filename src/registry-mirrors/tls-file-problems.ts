import { createPrivateKey, X509Certificate } from 'node:crypto'

// What is wrong with a certificate or key file, in words: OpenSSL has codes for it.

const certificateBlock = /-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----[^-]+-----END (?:TRUSTED |X509 )?CERTIFICATE-----/g
const keyBlock = /-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----/

/** Why a file of authorities cannot be used, undefined when it can. One good certificate is enough, as for Go. */
export function authorityProblem(file: string, bytes: Buffer): string | undefined {
  const blocks = bytes.toString('latin1').match(certificateBlock) ?? []
  if (blocks.some(isCertificate)) return undefined
  return `ca ${file} ${blocks.length > 0 ? 'is damaged: its PEM holds no certificate that can be read' : noCertificate(file, bytes)}`
}

/** Without what is damaged: OpenSSL reads no further than that, where Go goes on. */
export function goodAuthorities(bytes: Buffer): Buffer {
  const blocks = bytes.toString('latin1').match(certificateBlock) ?? []
  const good = blocks.filter(isCertificate)
  return good.length === blocks.length ? bytes : Buffer.from(good.join('\n'), 'latin1')
}

/** Why a client certificate and its key cannot be used, undefined when nothing is known. Without `keyFile` the key is in the certificate's file. */
export function clientProblem({ certFile, keyFile }: { readonly certFile: string; readonly keyFile?: string }, cert: Buffer, key: Buffer): string | undefined {
  const [certText, keyText] = [cert.toString('latin1'), key.toString('latin1')]
  const [block] = certText.match(certificateBlock) ?? []
  if (block === undefined) return `client certificate ${certFile} ${keyBlock.test(certText) ? 'is a key: a pair is written [["CERT", "KEY"]]' : noCertificate(certFile, cert)}`
  if (!isCertificate(block)) return `client certificate ${certFile} is damaged: its PEM holds no certificate that can be read`
  if (!keyBlock.test(keyText)) return keyFile === undefined ? `client ${certFile} has no private key in it: write client = [["${certFile}", "KEY"]]` : `client key ${keyFile} holds no private key in PEM`
  const name = keyFile ?? certFile
  if (/BEGIN ENCRYPTED PRIVATE KEY|Proc-Type:[^\n]*ENCRYPTED/.test(keyText)) return `client key ${name} has a passphrase, and nobody is there to type it: take it off (openssl pkey -in ${name} -out NEW)`
  try {
    return new X509Certificate(block).checkPrivateKey(createPrivateKey(key)) ? undefined : `client key ${name} does not belong to the certificate ${certFile}`
  } catch {
    return `client key ${name} is damaged, or of a kind that is not known`
  }
}

function noCertificate(file: string, bytes: Buffer): string {
  // A SEQUENCE, with which every certificate in DER begins.
  const isDer = bytes[0] === 0x30 && bytes[1] === 0x82
  return `holds no PEM certificate${isDer ? `; if it is one in DER: openssl x509 -inform der -in ${file} -out NEW` : ''}`
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0
  } catch {
    return false
  }
}
