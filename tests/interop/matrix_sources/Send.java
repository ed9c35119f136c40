// Jakarta Mail, as Debian packages it.
import jakarta.mail.Message;
import jakarta.mail.Session;
import jakarta.mail.Transport;
import jakarta.mail.internet.InternetAddress;
import jakarta.mail.internet.MimeMessage;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Properties;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Send {
    public static void main(String[] arguments) throws Exception {
        String feature = System.getenv("FEATURE");
        boolean tls = feature.equals("TLS") || feature.equals("AUTH");
        Properties settings = new Properties();
        settings.put("mail.smtp.host", System.getenv("HOST"));
        settings.put("mail.smtp.port", System.getenv("PORT"));
        settings.put("mail.smtp.localhost", "java.test");
        settings.put("mail.smtp.from", System.getenv("SENDER"));
        if (tls) {
            KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
            store.load(null, null);
            try (FileInputStream file = new FileInputStream(System.getenv("CA"))) {
                store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
            }
            TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            trust.init(store);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(null, trust.getTrustManagers(), null);
            settings.put("mail.smtp.ssl.socketFactory", context.getSocketFactory());
            settings.put("mail.smtp.starttls.enable", "true");
            settings.put("mail.smtp.starttls.required", "true");
            settings.put("mail.smtp.ssl.checkserveridentity", "true");
        }
        if (feature.equals("DSN")) {
            settings.put("mail.smtp.dsn.notify", "SUCCESS");
        }
        if (feature.equals("SMTPUTF8")) {
            settings.put("mail.mime.allowutf8", "true");
        }
        Session session = Session.getInstance(settings);
        MimeMessage message;
        try (FileInputStream file = new FileInputStream(System.getenv("MESSAGE"))) {
            message = new MimeMessage(session, file);
        }
        Transport transport = session.getTransport("smtp");
        if (feature.equals("AUTH")) {
            transport.connect(System.getenv("AUTH_USER"), System.getenv("AUTH_PASSWORD"));
        } else {
            transport.connect();
        }
        InternetAddress to = new InternetAddress();
        to.setAddress(System.getenv("RECIPIENT"));
        transport.sendMessage(message, new InternetAddress[] {to});
        transport.close();
    }
}
