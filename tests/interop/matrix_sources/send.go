// net/smtp of Go's standard library.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"log"
	"net/smtp"
	"os"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	env := os.Getenv
	client, err := smtp.Dial(env("HOST") + ":" + env("PORT"))
	must(err)
	must(client.Hello("go.test"))
	if env("FEATURE") == "TLS" || env("FEATURE") == "AUTH" {
		pem, err := os.ReadFile(env("CA"))
		must(err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		must(client.StartTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"}))
	}
	if env("FEATURE") == "AUTH" {
		must(client.Auth(smtp.PlainAuth("", env("AUTH_USER"), env("AUTH_PASSWORD"), env("HOST"))))
	}
	must(client.Mail(env("SENDER")))
	must(client.Rcpt(env("RECIPIENT")))
	body, err := client.Data()
	must(err)
	message, err := os.ReadFile(env("MESSAGE"))
	must(err)
	_, err = body.Write(message)
	must(err)
	must(body.Close())
	must(client.Quit())
}
